// The tool "Box": a box, and clicks that refine it, answered by the service (LiteMedSAM where it is installed, else the
// model's own probability).

import * as api from "./api.js";
import { $ } from "./dom.js";
import { decodeGrey } from "./png.js";

const DRAG = 5; // screen pixels from which a drag is a box

let method = null; // as GET /v1/prompt names it

// Which way there is; the tool is off where there is none.
export async function findMethod() {
  const radio = document.querySelector("[name=tool][value=prompt]");
  const methods = await api.promptMethods().catch(() => []);
  const usable = methods.filter(({ state }) => state !== "missing");
  method = usable.find(({ name }) => name === "sam") ?? usable[0] ?? null;
  radio.disabled = !method;
  const missing = methods.find(({ state }) => state === "missing");
  if (missing) radio.closest("label").title += `. LiteMedSAM: ${missing.reason}`;
  tell("");
}

const by = () => (method?.name === "sam" ? "LiteMedSAM" : "the model");

function tell(text) {
  $("prompt-text").textContent = text || `Drag a box around a polyp (${by()})`;
}

export class Prompt {
  constructor(editor, item) {
    Object.assign(this, { editor, item, pans: false, box: null, points: [], start: null, edit: null, turn: 0 });
  }

  down(place) {
    [this.start, this.end] = [place, place];
  }

  move(place) {
    if (this.start) this.end = place;
  }

  up(_, event) {
    if (!this.start) return;
    const [[x, y], [toX, toY]] = [this.start, this.end];
    this.start = null;
    this.editor.viewer.draw();
    const far = Math.max(Math.abs(x - toX), Math.abs(y - toY)) * this.editor.viewer.view.scale;
    if (far >= DRAG) {
      const { width, height } = this.editor;
      const inside = (value, most) => Math.min(Math.max(Math.round(value), 0), most);
      this.box = [inside(Math.min(x, toX), width), inside(Math.min(y, toY), height), inside(Math.max(x, toX), width), inside(Math.max(y, toY), height)];
      [this.points, this.edit] = [[], null];
    } else {
      if (!this.open || this.box) [this.points, this.edit] = [[], null]; // a click after a click adds to it
      this.box = null;
      this.points.push([Math.floor(x), Math.floor(y), event.altKey || this.editor.takesAway ? 0 : 1]);
    }
    this.ask();
  }

  cancel() {
    this.start = null;
  }

  finish() {}

  // Whether the last region is still the last edit, so that it can be refined.
  get open() {
    return Boolean(this.edit) && this.editor.past.at(-1) === this.edit;
  }

  async ask() {
    const { editor, item, box, points } = this;
    const mine = ++this.turn;
    tell(method.name === "sam" && method.state !== "ready" ? "LiteMedSAM is being prepared, the first time up to a minute…" : "Computing…");
    try {
      const found = await api.prompt(item.file, { method: method.name, box, points, known: item.remembered });
      method.state = "ready";
      item.remembered = found.frame;
      if (mine !== this.turn) return;
      const mask = await decodeGrey(Uint8Array.from(atob(found.mask), (letter) => letter.charCodeAt(0)));
      if (this.open) editor.undo();
      this.edit = null;
      if (!found.polyps.length) editor.say("Nothing was found there; draw it by hand");
      else if (editor.apply((own) => union(own, mask.pixels, editor.width, found.polyps))) this.edit = editor.past.at(-1);
    } catch (error) {
      editor.say(error.message);
    }
    if (mine === this.turn) tell("");
  }

  paint(context, pixel) {
    if (!this.start) return;
    const [[x, y], [toX, toY]] = [this.start, this.end];
    for (const [colour, width] of [["black", 3], ["white", 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * pixel;
      context.strokeRect(Math.min(x, toX), Math.min(y, toY), Math.abs(x - toX), Math.abs(y - toY));
    }
  }
}

// The box that was touched.
function union(mask, other, width, polyps) {
  const box = [Infinity, Infinity, 0, 0];
  for (const { box: [left, top, right, bottom] } of polyps) {
    box.splice(0, 4, Math.min(box[0], left), Math.min(box[1], top), Math.max(box[2], right), Math.max(box[3], bottom));
  }
  for (let y = box[1]; y < box[3]; y++) {
    for (let at = y * width + box[0]; at < y * width + box[2]; at++) if (other[at] > 127) mask[at] = 1;
  }
  return box;
}

