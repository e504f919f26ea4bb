// The panel of the editor: a frame's mask corrected by hand and saved with the frame, for training.

import * as api from "./api.js";
import { $, announce, counted, on, tell } from "./dom.js";
import { maskBlob, save, stem } from "./download.js";
import { Editor } from "./editor.js";

export class Correction {
  // onToggle() when it begins and ends; onSaved(item, mask).
  constructor(viewer, onToggle, onSaved) {
    [this.viewer, this.onToggle, this.onSaved] = [viewer, onToggle, onSaved];
    this.editor = null;
    on("undo", "click", () => this.editor.undo());
    on("redo", "click", () => this.editor.redo());
    on("size", "input", () => this.resize($("size").valueAsNumber));
    on("save-edit", "click", () => this.save());
    on("cancel-edit", "click", () => this.leave());
    for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", () => this.choose(radio.value));
    on("corrections-zip", "click", download);
    addEventListener("beforeunload", (event) => this.editor?.changed && event.preventDefault());
  }

  get active() {
    return this.editor !== null;
  }

  begin(item, scene) {
    [this.item, this.scene] = [item, scene];
    this.editor = new Editor(this.viewer, scene.mask, scene.width, scene.height);
    this.editor.addEventListener("change", () => this.buttons());
    this.viewer.tool = this.editor;
    $("size").max = Math.round(Math.max(scene.width, scene.height) / 3);
    this.resize(this.editor.size);
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
    $("looking").hidden = this.active;
    $("canvas").classList.toggle("edited", this.active);
    $("canvas").setAttribute("role", this.active ? "application" : "img");
    this.buttons();
    this.viewer.draw();
    this.onToggle();
  }

  buttons() {
    $("undo").disabled = !this.editor?.past.length;
    $("redo").disabled = !this.editor?.future.length;
  }

  choose(tool) {
    this.editor.erases = tool === "eraser";
    document.querySelector(`[name=tool][value=${tool}]`).checked = true;
    this.viewer.draw();
  }

  resize(pixels) {
    this.editor.size = Math.min(Math.max(Math.round(pixels), 1), Number($("size").max));
    $("size").value = this.editor.size;
    $("size-value").textContent = `${this.editor.size} px`;
    this.viewer.draw();
  }

  async save() {
    const { item, scene } = this;
    const { mask, width, height } = this.editor;
    $("save-edit").disabled = true;
    try {
      // As it came, where the service reads it as the browser does; else as a PNG of what is shown.
      const frame = ["image/jpeg", "image/png"].includes(item.file.type) ? item.file : await asPng(scene);
      const { name } = await api.saveCorrection(frame, await maskBlob(mask, width, height), stem(item.name));
      this.end();
      this.onSaved(item, mask);
      tell(`Saved as correction ${name}`);
      await countCorrections();
    } catch (error) {
      tell(error.message, true);
    } finally {
      $("save-edit").disabled = false;
    }
  }
}

function asPng({ picture, width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

export async function countCorrections() {
  const { count } = await api.corrections();
  $("corrections").hidden = !count;
  $("corrections-text").textContent = `${counted(count, "correction")} saved, as a data set to train on`;
}

async function download() {
  try {
    save(await api.download(api.correctionsZip), "corrections.zip");
  } catch (error) {
    tell(error.message, true);
  }
}
