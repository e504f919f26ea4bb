// The panel of the editor: a frame's mask corrected by hand and saved with the frame.

import { $, announce, on, percent, tell } from "./dom.js";
import { Editor } from "./editor.js";
import { labelsOf, saveReview, told } from "./saving.js";
import { state } from "./state.js";
import { smooth } from "./tools.js";

// Tells "toggle" when it begins and ends, "change" when the regions are others, "saved" (detail: {item, mode}).
export class Correction extends EventTarget {
  constructor(viewer) {
    super();
    this.viewer = viewer;
    this.editor = null;
    on("undo", "click", () => this.editor.undo());
    on("redo", "click", () => this.editor.redo());
    on("smooth", "click", () => smooth(this.editor));
    on("size", "input", () => this.resize($("size").valueAsNumber));
    on("reach", "input", () => this.editor.tools.grow.reach($("reach").valueAsNumber));
    on("takes-away", "change", () => (this.editor.takesAway = $("takes-away").checked));
    on("save-edit", "click", () => this.save());
    on("save-next", "click", () => this.save(true));
    on("cancel-edit", "click", () => this.leave());
    for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", () => this.choose(radio.value));
    addEventListener("beforeunload", (event) => this.editor?.changed && event.preventDefault());
  }

  get active() {
    return this.editor !== null;
  }

  begin(item, scene, point) {
    [this.item, this.scene, this.basedOn] = [item, scene, item.frame?.version ?? 0];
    this.editor = new Editor(this.viewer, scene, point, labelsOf(item), state.labels.classes);
    this.editor.addEventListener("change", () => this.buttons());
    this.editor.addEventListener("say", ({ detail }) => {
      tell(detail);
      announce(detail);
    });
    this.viewer.tool = this.editor;
    $("size").max = Math.round(Math.max(scene.width, scene.height) / 3);
    this.resize(this.editor.size);
    $("takes-away").checked = false;
    this.choose("brush");
    this.toggle();
    $("canvas").focus();
    announce("Correcting the mask. Arrow keys move the brush, the space bar draws.");
  }

  // Whether it is left: it has no strokes, or they may go.
  leave() {
    if (!this.active) return true;
    if (this.editor.changed && !confirm("Discard the correction that was not saved?")) return false;
    this.end();
    return true;
  }

  end() {
    this.editor = null;
    this.viewer.tool = null;
    this.toggle();
    $("edit").focus();
  }

  toggle() {
    $("editing").hidden = !this.active;
    for (const id of ["compare-label", "edit"]) $(id).classList.toggle("absent", this.active);
    $("canvas").classList.toggle("edited", this.active);
    $("canvas").setAttribute("role", this.active ? "application" : "img");
    this.dispatchEvent(new Event("toggle"));
    this.buttons();
    this.viewer.draw();
  }

  buttons() {
    const grow = this.editor?.tools.grow;
    $("undo").disabled = !this.editor?.past.length;
    $("redo").disabled = !this.editor?.future.length;
    $("reach").disabled = !grow?.open;
    if (grow?.open) $("reach").value = grow.level;
    $("reach-value").textContent = grow?.open ? percent(grow.level) : "";
    this.dispatchEvent(new Event("change"));
  }

  choose(tool) {
    const radio = document.querySelector(`[name=tool][value=${tool}]`);
    if (radio.disabled) return;
    radio.checked = true;
    this.editor.choose(tool);
    for (const part of document.querySelectorAll("#editing [data-tools]")) part.hidden = !part.dataset.tools.split(" ").includes(tool);
    $("canvas").classList.toggle("moved", tool === "move");
  }

  resize(pixels) {
    this.editor.size = Math.min(Math.max(Math.round(pixels), 1), Number($("size").max));
    $("size").value = this.editor.size;
    $("size-value").textContent = `${this.editor.size} px`;
    this.viewer.draw();
  }

  async save(onwards = false) {
    const { item, scene, editor, basedOn } = this;
    editor.cancel();
    const buttons = ["save-edit", "save-next"];
    for (const id of buttons) $(id).disabled = true;
    const saved = await told(() => saveReview(item, "corrected", { ...scene, mask: editor.mask, polyps: editor.polyps, entries: editor.entries }, basedOn));
    for (const id of buttons) $(id).disabled = false;
    if (!saved) return;
    this.end();
    this.dispatchEvent(new CustomEvent("saved", { detail: { item, onwards: onwards && saved !== "theirs" } }));
  }
}
