// The tools of an Editor: what a click or a drag does to its mask. Each has down, move, up, cancel and paint; `finish`
// where something is drawn in several clicks.

import { grow, seedAt, shed } from "./grow.js";
import * as pixels from "./pixels.js";
import { Prompt } from "./prompt.js";
import { holeAt, label, regionAt, runsOf } from "./runs.js";

const CLOSE = 12; // screen pixels within which a click on a polygon's first corner closes it

class Tool {
  constructor(editor) {
    this.editor = editor;
    this.pans = false;
  }

  down() {}
  move() {}
  up() {}
  cancel() {}
  finish() {}
  paint() {}

  get runs() {
    const { mask, width, height } = this.editor;
    return runsOf(mask, width, height);
  }
}

class Brush extends Tool {
  constructor(editor, value) {
    super(editor);
    this.value = value;
  }

  down(place) {
    this.editor.begin();
    this.drag(place, place);
  }

  move(place, before) {
    if (this.editor.before) this.drag(before, place);
  }

  up() {
    if (this.editor.before) this.editor.commit();
  }

  cancel() {
    this.editor.abandon();
  }

  drag(from, to) {
    const { mask, width, height, size } = this.editor;
    this.editor.touch(pixels.stroke(mask, width, height, from, to, size / 2, this.value));
  }

  paint(context, pixel) {
    if (!this.editor.place) return;
    const circle = new Path2D();
    circle.arc(...this.editor.place, this.editor.size / 2, 0, 2 * Math.PI);
    line(context, circle, pixel, !this.value);
  }
}

// Corners by clicks, or freehand by a drag.
class Outline extends Tool {
  constructor(editor, freehand) {
    super(editor);
    this.freehand = freehand;
    this.corners = [];
    this.pressed = false;
  }

  down(place) {
    this.pressed = true;
    if (this.freehand) this.corners = [place];
  }

  move(place) {
    if (this.freehand && this.pressed) this.corners.push(place);
  }

  up(place, event) {
    if (!this.pressed) return;
    this.pressed = false;
    if (this.freehand) return this.finish(event.altKey);
    const far = CLOSE / this.editor.viewer.view.scale;
    const [first] = this.corners;
    if (this.corners.length > 2 && Math.hypot(place[0] - first[0], place[1] - first[1]) < far) this.finish(event.altKey);
    else this.corners.push(place);
  }

  back() {
    this.corners.pop();
    this.editor.viewer.draw();
  }

  cancel() {
    this.corners = [];
    this.pressed = false;
    this.editor.viewer.draw();
  }

  finish(other = false) {
    const { mask, width, height, takesAway } = this.editor;
    const { corners } = this;
    this.cancel();
    if (corners.length < 3) return;
    this.editor.apply(() => pixels.polygon(mask, width, height, corners, takesAway === other ? 1 : 0));
  }

  paint(context, pixel) {
    const { corners } = this;
    if (!corners.length) return;
    const path = new Path2D();
    corners.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
    if (this.editor.place) path.lineTo(...this.editor.place);
    line(context, path, pixel, this.editor.takesAway);
    if (this.freehand) return;
    context.fillStyle = "white";
    corners.forEach(([x, y], index) => {
      const half = (index ? 3 : 5) * pixel;
      context.fillRect(x - half, y - half, 2 * half, 2 * half);
    });
  }
}

// The region that the model sees around a click. Its level may be moved until something else is done.
class Grow extends Tool {
  down(place) {
    this.at = place;
  }

  up(_, event) {
    if (!this.at) return;
    if (this.editor.takesAway !== Boolean(event.altKey)) return this.less();
    const seed = seedAt(this.editor.surface, this.at);
    this.at = null;
    if (!seed) return this.editor.say("The model sees nothing here; draw it by hand");
    this.last = { place: seed.place };
    this.reach(seed.level);
  }

  // A click that takes away.
  less() {
    const { editor, at } = this;
    this.at = this.last = null;
    const region = regionAt(label(this.runs).regions, at);
    if (!region) return editor.say("There is no region here");
    editor.apply((mask) => pixels.region(mask, editor.width, shed(editor.surface, region, at), 0));
  }

  cancel() {
    this.at = null;
  }

  // Whether there is a region whose level can be moved.
  get open() {
    return Boolean(this.last) && (this.last.edit === undefined || this.editor.past.at(-1) === this.last.edit);
  }

  reach(level) {
    if (!this.open) return;
    const { editor, last } = this;
    if (last.edit) editor.undo();
    this.level = level;
    last.edit = undefined;
    const found = grow(editor.surface, last.place, level);
    if (found && editor.apply((mask) => pixels.region(mask, editor.width, found, 1))) last.edit = editor.past.at(-1);
    else editor.told();
  }
}

class Remove extends Tool {
  up(place) {
    const found = regionAt(label(this.runs).regions, place);
    if (!found) return this.editor.say("There is no region here");
    this.editor.apply((mask) => pixels.region(mask, this.editor.width, found, 0));
  }
}

class CloseHole extends Tool {
  up(place) {
    const found = holeAt(this.runs, place);
    if (!found) return this.editor.say("No region encloses this place");
    this.editor.apply((mask) => pixels.region(mask, this.editor.width, found, 1));
  }
}

class Move extends Tool {
  constructor(editor) {
    super(editor);
    this.pans = true;
  }
}

export const makeTools = (editor, item) => ({
  brush: new Brush(editor, 1),
  eraser: new Brush(editor, 0),
  polygon: new Outline(editor, false),
  lasso: new Outline(editor, true),
  grow: new Grow(editor),
  prompt: new Prompt(editor, item),
  hole: new CloseHole(editor),
  remove: new Remove(editor),
  move: new Move(editor),
});

// Every region at once.
export function smooth(editor) {
  const radius = Math.max(1, Math.round(Math.max(editor.width, editor.height) / 200));
  editor.apply((mask) => pixels.smooth(mask, editor.width, editor.height, radius));
}

function line(context, path, pixel, dashed) {
  context.setLineDash(dashed ? [4 * pixel, 4 * pixel] : []);
  for (const [colour, width] of [["black", 3], ["white", 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * pixel;
    context.stroke(path);
  }
  context.setLineDash([]);
}
