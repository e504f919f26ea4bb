// A mask that is corrected by hand, and its labels, with undo and redo over all that was done. A Viewer's tool; what a click or a drag
// does is the business of the tools (tools.js).

import { covers, describe, renamed } from "./classes.js";
import { COLOUR, paintBox, paintHeat, paintOutline, pathOf } from "./paint.js";
import { difference, flip } from "./pixels.js";
import { polypsOf } from "./polyps.js";
import { makeTools } from "./tools.js";

const MOST_STEPS = 200;
const INK = new Uint32Array(new Uint8Array([...COLOUR, 255]).buffer)[0];

// Tells "change" after each edit, undo and redo, and "say" (detail: one line) where a tool could do nothing.
export class Editor extends EventTarget {
  // scene: of the viewer; its mask is copied. point: whose `confidence` the regions have. entries: the labels (classes.js).
  constructor(viewer, scene, point, entries, classes) {
    super();
    Object.assign(this, { viewer, point, entries, classes, surface: scene.surface, heat: scene.heat, width: scene.width, height: scene.height });
    this.mask = scene.mask.slice();
    this.size = Math.max(3, Math.round(Math.max(scene.width, scene.height) / 25)); // diameter, pixels of the frame
    this.takesAway = false; // what polygon and lasso do
    this.place = null; // of the pointer, pixels of the frame
    this.past = []; // {box, pairs} of the mask, or {entries} as they were before
    this.future = [];
    this.before = null; // the mask as it was when an edit began
    this.layer = new OffscreenCanvas(scene.width, scene.height);
    this.ink = this.layer.getContext("2d");
    this.tools = makeTools(this, scene.item);
    this.tool = this.tools.brush;
    this.refresh([0, 0, scene.width, scene.height]);
    this.chosenAt = scene.polyps[viewer.selected]?.contour[0] ?? null; // the region that labels are given to
    this.measure();
  }

  get changed() {
    return this.past.length > 0;
  }

  say(line) {
    this.dispatchEvent(new CustomEvent("say", { detail: line }));
  }

  choose(name) {
    this.tool.cancel();
    this.tool = this.tools[name];
    this.viewer.draw();
  }

  // --- what the viewer calls; places are [x, y] in pixels of the frame ---

  get pans() {
    return this.tool.pans;
  }

  down(place, event) {
    this.place = place;
    this.tool.down(place, event);
  }

  move(place) {
    this.tool.move(place, this.place);
    this.place = place;
    this.viewer.draw();
  }

  up(event) {
    this.tool.up(this.place, event);
  }

  cancel() {
    this.tool.cancel();
  }

  finish() {
    this.tool.finish();
  }

  leave() {
    if (!this.before) this.place = null;
    this.viewer.draw();
  }

  // By keys: the pointer begins in the middle.
  step(x, y) {
    const [fromX, fromY] = this.place ?? [this.width / 2, this.height / 2];
    this.place = [Math.min(Math.max(fromX + x, 0), this.width), Math.min(Math.max(fromY + y, 0), this.height)];
    this.viewer.draw();
  }

  dab() {
    this.step(0, 0);
    this.down(this.place, {});
    this.up({});
  }

  // --- edits ---

  begin() {
    this.before = this.mask.slice();
    this.touched = [this.width, this.height, 0, 0];
  }

  touch(box) {
    const [left, top, right, bottom] = this.touched;
    this.touched = [Math.min(left, box[0]), Math.min(top, box[1]), Math.max(right, box[2]), Math.max(bottom, box[3])];
    this.refresh(box);
  }

  // Whether anything is another.
  commit() {
    const edit = { box: this.touched, pairs: difference(this.before, this.mask, this.width, this.touched) };
    this.before = null;
    if (!edit.pairs.length) return false;
    this.keep(edit);
    return true;
  }

  keep(edit) {
    this.past.push(edit);
    if (this.past.length > MOST_STEPS) this.past.shift();
    this.future = [];
    this.told();
  }

  // The edit in progress never was.
  abandon() {
    if (!this.before) return;
    flip(this.mask, difference(this.before, this.mask, this.width, this.touched));
    this.before = null;
    this.refresh(this.touched);
  }

  // run(mask) changes the mask and gives the box that it touched.
  apply(run) {
    this.begin();
    this.touch(run(this.mask));
    return this.commit();
  }

  undo() {
    this.replay(this.past, this.future);
  }

  redo() {
    this.replay(this.future, this.past);
  }

  replay(from, to) {
    this.tool.cancel();
    const edit = from.pop();
    if (!edit) return;
    if (edit.pairs) {
      flip(this.mask, edit.pairs);
      this.refresh(edit.box);
    } else [this.entries, edit.entries] = [edit.entries, this.entries];
    to.push(edit);
    this.told();
  }

  told() {
    this.measure();
    this.dispatchEvent(new Event("change"));
  }

  // The regions as they are now.
  measure() {
    this.polyps = polypsOf(this.mask, this.surface, this.point.confidence);
    this.path = pathOf(this.polyps);
    describe(this.polyps, this.entries, this.classes);
    this.chosen = this.chosenAt ? this.polyps.findIndex((polyp) => covers(polyp, this.chosenAt)) : -1;
  }

  // --- labels ---

  // Zooms to a region, which labels are given to from now on; to the whole frame where it was chosen already.
  pick(index) {
    this.chosen = this.chosen === index ? -1 : index;
    const polyp = this.polyps[this.chosen];
    this.chosenAt = polyp?.contour[0] ?? null;
    if (polyp) this.viewer.zoomTo(polyp.box);
    else this.viewer.fit();
    this.dispatchEvent(new Event("change"));
  }

  // The class and the attributes of the region that is chosen.
  call(said) {
    const { entries } = this;
    this.entries = renamed(this.polyps, entries, this.chosen, said);
    this.keep({ entries });
  }

  // --- drawing ---

  refresh([left, top, right, bottom]) {
    if (left >= right || top >= bottom) return;
    const image = new ImageData(right - left, bottom - top);
    const colours = new Uint32Array(image.data.buffer);
    for (let y = top, to = 0; y < bottom; y++) {
      for (let at = y * this.width + left, end = y * this.width + right; at < end; at++, to++) if (this.mask[at]) colours[to] = INK;
    }
    this.ink.putImageData(image, left, top);
    this.viewer.draw();
  }

  paint(context, pixel, { mode, opacity }) {
    if (mode === "heat") paintHeat(context, this, opacity);
    if (mode === "fill" || (this.before && mode !== "off")) {
      context.globalAlpha = mode === "fill" ? opacity : 0.35;
      context.imageSmoothingEnabled = false;
      context.drawImage(this.layer, 0, 0);
      context.globalAlpha = 1;
    }
    if (!this.before && (mode === "contour" || mode === "heat")) paintOutline(context, this.path, mode === "heat" ? 1 : opacity, pixel);
    if (!this.before && this.chosen >= 0 && mode !== "off") paintBox(context, this.polyps[this.chosen].box, pixel);
    this.tool.paint(context, pixel);
  }
}
