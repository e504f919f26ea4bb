// The canvas: a frame, its polyps over it, zoom and pan, the comparing line, and a tool that draws.

import { listen } from "./gestures.js";
import { paintBox, paintPolyps, pathOf } from "./paint.js";

const CLOSEST = 40; // screen pixels a frame's pixel may take

// Tells "pick" (detail: index of the clicked polyp, -1 beside all) and "view" (zoomed or panned).
export class Viewer extends EventTarget {
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.scene = null; // {picture, width, height, polyps, path, heat}
    this.options = { mode: "contour", opacity: 1, compare: 0, faint: true }; // compare: share that shows the frame alone
    this.selected = -1;
    this.tool = null; // an Editor while a mask is corrected
    this.fitted = true;
    this.view = { scale: 1, x: 0, y: 0 }; // where the frame's corner lies, and its scale, in CSS pixels
    new ResizeObserver(() => this.resize()).observe(canvas);
    listen(this);
  }

  // scene null clears. keep: the zoom stays, as for the next frame of a camera.
  show(scene, keep = false) {
    const same = this.scene && scene && this.scene.width === scene.width && this.scene.height === scene.height;
    this.scene = scene;
    if (!keep || !same) {
      this.selected = -1;
      this.fit();
    }
    this.draw();
  }

  set(options) {
    Object.assign(this.options, options);
    this.draw();
  }

  // --- where we look ---

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.round(clientWidth * devicePixelRatio);
    this.canvas.height = Math.round(clientHeight * devicePixelRatio);
    if (this.fitted) this.fit();
    this.paint();
  }

  fit() {
    this.fitted = true;
    if (this.scene) this.look([0, 0, this.scene.width, this.scene.height], 0);
  }

  // Zooms to a box with some of what is around it.
  zoomTo(box) {
    this.fitted = false;
    this.look(box, 0.5);
  }

  look([left, top, right, bottom], margin) {
    const { clientWidth, clientHeight } = this.canvas;
    const grow = 1 + 2 * margin;
    const scale = Math.min(clientWidth / ((right - left) * grow), clientHeight / ((bottom - top) * grow), CLOSEST);
    this.view = {
      scale,
      x: clientWidth / 2 - (scale * (left + right)) / 2,
      y: clientHeight / 2 - (scale * (top + bottom)) / 2,
    };
    this.moved();
  }

  zoomBy(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.scene) return;
    const whole = Math.min(this.canvas.clientWidth / this.scene.width, this.canvas.clientHeight / this.scene.height);
    const scale = Math.min(Math.max(this.view.scale * factor, whole / 2), CLOSEST);
    const change = scale / this.view.scale;
    this.fitted = false;
    this.view = { scale, x: x - change * (x - this.view.x), y: y - change * (y - this.view.y) };
    this.moved();
  }

  panBy(x, y) {
    this.fitted = false;
    this.view = { ...this.view, x: this.view.x + x, y: this.view.y + y };
    this.moved();
  }

  moved() {
    this.canvas.classList.toggle("zoomed", !this.fitted);
    this.dispatchEvent(new Event("view"));
    this.draw();
  }

  // Where labels are seen: the part of the frame that is on the canvas.
  labelBounds() {
    const [left, top] = this.toFrame(0, 0);
    const [right, bottom] = this.toFrame(this.canvas.clientWidth, this.canvas.clientHeight);
    const { width, height } = this.scene;
    return [Math.max(left, 0), Math.max(top, 0), Math.min(right, width), Math.min(bottom, height)];
  }

  // From CSS pixels of the canvas to pixels of the frame.
  toFrame(x, y) {
    return [(x - this.view.x) / this.view.scale, (y - this.view.y) / this.view.scale];
  }

  // --- drawing ---

  // Many changes between two refreshes of the screen are drawn once.
  draw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.paint();
    });
  }

  paint() {
    const { context, canvas, scene, view, options } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!scene) return;
    const scale = view.scale * devicePixelRatio;
    context.setTransform(scale, 0, 0, scale, view.x * devicePixelRatio, view.y * devicePixelRatio);
    context.imageSmoothingEnabled = view.scale < 8;
    context.drawImage(scene.picture, 0, 0, scene.width, scene.height);
    context.imageSmoothingEnabled = true;
    const pixel = 1 / view.scale;
    if (this.tool) {
      this.tool.paint(context, pixel, options);
      return;
    }
    context.save();
    const line = canvas.clientWidth * options.compare;
    if (options.compare) {
      const [left, top] = this.toFrame(line, 0);
      const [right, bottom] = this.toFrame(canvas.clientWidth, canvas.clientHeight);
      context.beginPath();
      context.rect(left, top, right - left, bottom - top);
      context.clip();
    }
    paintPolyps(context, scene, options, pixel, this.labelBounds());
    if (scene.polyps[this.selected] && options.mode !== "off") paintBox(context, scene.polyps[this.selected].box, pixel);
    context.restore();
    if (options.compare) {
      context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
      context.fillStyle = "black";
      context.fillRect(line - 1.5, 0, 3, canvas.clientHeight);
      context.fillStyle = "white";
      context.fillRect(line - 0.5, 0, 1, canvas.clientHeight);
    }
  }

  pick([x, y]) {
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    const index = this.scene.polyps.findIndex((polyp) => this.context.isPointInPath(pathOf([polyp]), x, y, "evenodd"));
    this.dispatchEvent(new CustomEvent("pick", { detail: index }));
  }
}
