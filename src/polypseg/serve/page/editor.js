// A mask corrected by hand: brush, eraser, undo and redo, by pointer or by keys. A Viewer's tool.

import { COLOUR } from "./paint.js";

const OPACITY = 0.45;

// Tells "change" after each stroke, undo and redo.
export class Editor extends EventTarget {
  // mask: Uint8Array of 0 and 1, which is copied.
  constructor(viewer, mask, width, height) {
    super();
    this.viewer = viewer;
    this.mask = mask.slice();
    [this.width, this.height] = [width, height];
    this.erases = false;
    this.size = Math.max(3, Math.round(Math.max(width, height) / 25)); // diameter, pixels of the frame
    this.place = null; // of the brush, pixels of the frame
    this.past = [];
    this.future = [];
    this.before = null; // the mask as it was when the stroke began
    this.layer = new OffscreenCanvas(width, height);
    this.ink = this.layer.getContext("2d");
    this.refresh([0, 0, width, height]);
  }

  get changed() {
    return this.past.length > 0;
  }

  // --- strokes; places are [x, y] in pixels of the frame ---

  down(place) {
    this.before = this.mask.slice();
    this.touched = [this.width, this.height, 0, 0];
    this.place = place;
    this.drag(place, place);
  }

  move(place) {
    if (this.before) this.drag(this.place, place);
    this.place = place;
    this.viewer.draw();
  }

  up() {
    if (!this.before) return;
    const [left, top, right, bottom] = this.touched;
    const edit = { box: this.touched, before: this.cut(this.before, this.touched), after: this.cut(this.mask, this.touched) };
    this.before = null;
    if (left >= right || top >= bottom || edit.before.every((value, at) => value === edit.after[at])) return;
    this.past.push(edit);
    this.future = [];
    this.dispatchEvent(new Event("change"));
  }

  leave() {
    if (!this.before) this.place = null;
    this.viewer.draw();
  }

  // By keys: the brush begins in the middle.
  step(x, y) {
    const [fromX, fromY] = this.place ?? [this.width / 2, this.height / 2];
    this.place = [Math.min(Math.max(fromX + x, 0), this.width), Math.min(Math.max(fromY + y, 0), this.height)];
    this.viewer.draw();
  }

  dab() {
    this.step(0, 0);
    this.down(this.place);
    this.up();
  }

  undo() {
    this.replay(this.past, this.future, "before");
  }

  redo() {
    this.replay(this.future, this.past, "after");
  }

  replay(from, to, which) {
    const edit = from.pop();
    if (!edit) return;
    const [left, top, right, bottom] = edit.box;
    const width = right - left;
    for (let y = top; y < bottom; y++) {
      this.mask.set(edit[which].subarray((y - top) * width, (y - top + 1) * width), y * this.width + left);
    }
    to.push(edit);
    this.refresh(edit.box);
    this.dispatchEvent(new Event("change"));
  }

  // --- pixels ---

  // Every pixel whose centre is within half the brush's size of the way.
  drag([fromX, fromY], [toX, toY]) {
    const radius = this.size / 2;
    const box = [
      Math.max(0, Math.floor(Math.min(fromX, toX) - radius)),
      Math.max(0, Math.floor(Math.min(fromY, toY) - radius)),
      Math.min(this.width, Math.ceil(Math.max(fromX, toX) + radius)),
      Math.min(this.height, Math.ceil(Math.max(fromY, toY) + radius)),
    ];
    const [alongX, alongY] = [toX - fromX, toY - fromY];
    const length = alongX ** 2 + alongY ** 2;
    for (let y = box[1]; y < box[3]; y++) {
      for (let x = box[0]; x < box[2]; x++) {
        const [offX, offY] = [x + 0.5 - fromX, y + 0.5 - fromY];
        const part = length ? Math.min(Math.max((offX * alongX + offY * alongY) / length, 0), 1) : 0;
        if ((offX - part * alongX) ** 2 + (offY - part * alongY) ** 2 <= radius ** 2) {
          this.mask[y * this.width + x] = this.erases ? 0 : 1;
        }
      }
    }
    const [left, top, right, bottom] = this.touched;
    this.touched = [Math.min(left, box[0]), Math.min(top, box[1]), Math.max(right, box[2]), Math.max(bottom, box[3])];
    this.refresh(box);
  }

  cut(mask, [left, top, right, bottom]) {
    const part = new Uint8Array(Math.max(right - left, 0) * Math.max(bottom - top, 0));
    for (let y = top; y < bottom; y++) {
      part.set(mask.subarray(y * this.width + left, y * this.width + right), (y - top) * (right - left));
    }
    return part;
  }

  refresh(box) {
    const [left, top, right, bottom] = box;
    if (left >= right || top >= bottom) return;
    const image = new ImageData(right - left, bottom - top);
    this.cut(this.mask, box).forEach((value, at) => value && image.data.set([...COLOUR, 255], 4 * at));
    this.ink.putImageData(image, left, top);
    this.viewer.draw();
  }

  paint(context, pixel) {
    context.globalAlpha = OPACITY;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.layer, 0, 0);
    context.globalAlpha = 1;
    if (!this.place) return;
    for (const [colour, line] of [["black", 3], ["white", 1.5]]) {
      context.beginPath();
      context.arc(...this.place, this.size / 2, 0, 2 * Math.PI);
      context.strokeStyle = colour;
      context.lineWidth = line * pixel;
      context.setLineDash(this.erases ? [4 * pixel, 4 * pixel] : []);
      context.stroke();
    }
    context.setLineDash([]);
  }
}
