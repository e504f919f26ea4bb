// What can be saved from the page, in the formats of `polypseg predict`.

import { encodeGrey } from "./png.js";
import { paintPolyps } from "./paint.js";
import { isHole } from "./outline.js";

export const stem = (name) => name.replace(/\.[^.]*$/, "");

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  follow(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export function follow(url, name) {
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
}

export const jsonBlob = (value) => new Blob([JSON.stringify(value), "\n"], { type: "application/json" });

// A Blob of the mask as a grey PNG, 0 or 255. mask: Uint8Array of 0 and 1.
export const maskBlob = (mask, width, height) => encodeGrey(mask.map((value) => 255 * value), width, height);

// A Blob of the frame with its polyps as the viewer shows them, at the frame's size; without the faint regions.
export function overlayBlob(scene, options) {
  const canvas = new OffscreenCanvas(scene.width, scene.height);
  const context = canvas.getContext("2d");
  context.drawImage(scene.picture, 0, 0, scene.width, scene.height);
  paintPolyps(context, { ...scene, faintPath: null }, options, Math.max(1, Math.max(scene.width, scene.height) / 700));
  return canvas.convertToBlob({ type: "image/png" });
}

// One frame's answer, with the keys of the service's. answer: what the service said; found: {polyps, point, corrected}.
export function record(answer, { polyps, point, corrected }) {
  const { source, frame, time, width, height, model } = answer;
  const rounded = (value) => Math.round(value * 1e6) / 1e6;
  return {
    source, frame, time, width, height, threshold: point.threshold, model, operating_point: point,
    ...(answer.quality && { quality: answer.quality }),
    ...(corrected && { corrected }),
    polyps: polyps.map(({ box, area, confidence, contour }) => ({ box, area, confidence: rounded(confidence), contour })),
  };
}

// Several frames in COCO's format. frames: [{answer, polyps}].
export function coco(frames, intendedUse) {
  const images = [];
  const annotations = [];
  for (const { answer, polyps } of frames) {
    const image = images.length + 1;
    images.push({ id: image, file_name: answer.source, width: answer.width, height: answer.height, frame: answer.frame });
    for (const { box: [left, top, right, bottom], area, confidence, rings } of polyps) {
      annotations.push({
        id: annotations.length + 1,
        image_id: image,
        category_id: 1,
        segmentation: rings.some(isHole) ? runs(rings, answer.width, answer.height) : rings.map((ring) => ring.flat()),
        bbox: [left, top, right - left, bottom - top],
        area,
        iscrowd: 0,
        score: confidence,
      });
    }
  }
  return {
    info: { description: `Predictions of polypseg. ${intendedUse}` },
    licenses: [],
    categories: [{ id: 1, name: "polyp", supercategory: "" }],
    images,
    annotations,
  };
}

// Run lengths down the columns, beginning with background: what polygons cannot say, holes.
function runs(rings, width, height) {
  // Going down the columns, each edge along x is where background and polyp change. An edge at a column's end is told
  // as one at the next column's beginning, and two at one place are no change.
  const changes = new Set();
  for (const ring of rings) {
    ring.forEach(([x, y], index) => {
      const [nextX, nextY] = ring[(index + 1) % ring.length];
      if (y !== nextY) return;
      for (let column = Math.min(x, nextX); column < Math.max(x, nextX); column++) {
        const place = column * height + y;
        if (!changes.delete(place)) changes.add(place);
      }
    });
  }
  const counts = [];
  let last = 0;
  for (const place of [...changes].sort((one, other) => one - other)) {
    counts.push(place - last);
    last = place;
  }
  if (last < width * height) counts.push(width * height - last);
  return { size: [height, width], counts };
}
