// Polyps drawn over a frame, the same way on the screen and in a downloaded overlay.

import { percent } from "./dom.js";
import { placeLabels } from "./labels.js";

// As in Python's overlays: told apart also by people with red-green colour blindness, and rare in the colon.
export const COLOUR = [255, 230, 0];
const YELLOW = `rgb(${COLOUR})`;
// Probability from 0 to 1, evenly spaced, from clear to solid: no reds, which the mucosa has itself.
export const HEAT = [[60, 0, 90], [55, 70, 150], [20, 150, 150], [90, 205, 95], [255, 230, 0]];

// One outline of rings, for filling (even-odd) and stroking.
export function pathOf(polyps) {
  const path = new Path2D();
  for (const ring of polyps.flatMap((polyp) => polyp.rings)) {
    ring.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}

// A canvas of the map's own size; drawn larger, the browser makes it smooth.
export function heatOf(map) {
  const canvas = new OffscreenCanvas(map.width, map.height);
  const image = new ImageData(map.width, map.height);
  const table = Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (HEAT.length - 1);
    const low = Math.min(Math.floor(place), HEAT.length - 2);
    return HEAT[low].map((value, channel) => value + (place - low) * (HEAT[low + 1][channel] - value));
  });
  map.pixels.forEach((level, at) => image.data.set([...table[level], level], 4 * at));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

export function paintHeat(context, { heat, width, height }, opacity) {
  if (!heat) return;
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = true;
  context.drawImage(heat, 0, 0, width, height);
  context.globalAlpha = 1;
}

export function paintOutline(context, path, opacity, pixel) {
  context.globalAlpha = opacity;
  context.lineJoin = "round";
  lines(context, path, [["rgb(0 0 0 / 60%)", 4], [YELLOW, 2]], pixel);
  context.globalAlpha = 1;
}

function lines(context, path, strokes, pixel) {
  for (const [colour, width] of strokes) {
    context.strokeStyle = colour;
    context.lineWidth = width * pixel;
    context.stroke(path);
  }
}

// Into a context whose unit is a pixel of the frame. pixel: the size of one on the screen (or in the file) in that unit.
// bounds: where labels may be, the frame by default.
export function paintPolyps(context, scene, { mode, opacity, faint = true }, pixel, bounds = [0, 0, scene.width, scene.height]) {
  context.save();
  if (faint && scene.faintPath && (mode === "contour" || mode === "fill")) {
    context.globalAlpha = 0.6;
    context.setLineDash([4 * pixel, 4 * pixel]);
    lines(context, scene.faintPath, [["rgb(0 0 0 / 60%)", 2.5], ["white", 1]], pixel);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }
  if (mode === "heat") paintHeat(context, scene, opacity);
  else if (mode === "fill") {
    context.globalAlpha = opacity;
    context.fillStyle = YELLOW;
    context.fill(scene.path, "evenodd");
  } else if (mode === "contour") paintOutline(context, scene.path, opacity, pixel);
  context.restore();
  if (mode !== "off") paintLabels(context, scene.polyps, pixel, bounds);
}

// What stands at a polyp's outline: its number, and what is known of it.
export const labelOf = ({ label, confidence, number }, index) => `${number ?? index + 1}  ${label || percent(confidence)}`.trim();

function paintLabels(context, polyps, pixel, bounds) {
  context.save();
  context.font = `bold ${13 * pixel}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const texts = polyps.map(labelOf);
  const sizes = texts.map((text) => [context.measureText(text).width + 10 * pixel, 19 * pixel]);
  placeLabels(polyps, sizes, bounds).forEach(([left, top, right, bottom], index) => {
    context.fillStyle = "rgb(0 0 0 / 75%)";
    context.fillRect(left, top, right - left, bottom - top);
    context.fillStyle = YELLOW;
    context.fillText(texts[index], left + 5 * pixel, (top + bottom) / 2 + pixel);
  });
  context.restore();
}

export function paintBox(context, [left, top, right, bottom], pixel) {
  const path = new Path2D();
  path.rect(left, top, right - left, bottom - top);
  lines(context, path, [["rgb(0 0 0 / 60%)", 3], ["white", 1.5]], pixel);
}
