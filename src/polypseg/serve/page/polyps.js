// From a probability map to polyps, by the rules of the Python package (segmentation.py, operating_point.py,
// outputs.py), so that threshold and least confidence can be moved without asking the service. No document in here.

import { outlineOf } from "./outline.js";
import { filled, label, maskOf, runsOf } from "./runs.js";

// What an operating point (`operating_point` of the service) makes of a Surface: {mask, polyps, faint}. mask: Uint8Array of
// 0 and 1. faint: regions of too little confidence, which are in neither of the others. outside: where the frame shows
// nothing of the patient, {pixels (255 there), width, height}, or null.
export function findPolyps(surface, point, outside = null) {
  let runs = surface.runs(point.threshold);
  if (point.fill_holes) runs = filled(runs);
  const { labels, regions } = label(runs);
  const least = Math.fround(point.min_confidence ?? 0);
  const found = regions.filter((region) => isKept(region, runs, point.min_area ?? 0, outside));
  measure(found, surface, point.confidence);
  const kept = found.filter(({ confidence }) => Math.fround(confidence) >= least);
  const faint = found.filter(({ confidence }) => Math.fround(confidence) < least);
  const polyps = finish(kept, runs.width);
  let mask = null;
  return {
    polyps,
    faint: finish(faint, runs.width),
    // Made when it is first asked for: it is large, and a moving slider needs none.
    get mask() {
      const inMask = new Set(kept);
      mask ??= maskOf(runs, labels.map((number) => (inMask.has(regions[number]) ? 1 : 0)));
      return mask;
    },
  };
}

// Large enough, and not more than half outside.
function isKept({ area, runs: parts }, { width, height }, minArea, outside) {
  if (area < minArea * width * height) return false;
  if (!outside) return true;
  // The first pixel whose middle lies in a column of `outside`, or beyond it.
  const first = (column) => Math.ceil((column * width) / outside.width - 0.5);
  let beyond = 0;
  for (const { y, from, to } of parts) {
    const row = Math.floor(((y + 0.5) * outside.height) / height) * outside.width;
    for (let x = from; x < to; ) {
      const column = Math.floor(((x + 0.5) * outside.width) / width);
      const end = Math.min(Math.max(first(column + 1), x + 1), to);
      if (outside.pixels[row + column]) beyond += end - x;
      x = end;
    }
  }
  return 2 * beyond <= area;
}

// Gives each region its confidence. kind: "peak" or "mean".
function measure(regions, surface, kind) {
  const rows = new Map();
  for (const region of regions) {
    region.confidence = 0;
    for (const part of region.runs) {
      if (!rows.has(part.y)) rows.set(part.y, []);
      rows.get(part.y).push([part, region]);
    }
  }
  for (const [y, parts] of rows) {
    const narrow = surface.between(y);
    for (const [{ from, to }, region] of parts) {
      if (kind === "mean") region.confidence += surface.sum(narrow, from, to) / region.area;
      else region.confidence = Math.max(region.confidence, surface.highest(narrow, from, to));
    }
  }
}

const finish = (regions, width) =>
  regions
    .map((region) => ({ box: region.box, area: region.area, confidence: region.confidence, ...outlineOf(region, width) }))
    .sort((one, other) => other.area - one.area);

// The regions of a mask (Uint8Array of 0 and 1), largest first: {box: [xmin, ymin, xmax, ymax], area, confidence, contour,
// rings}. kind: what the confidence is, "peak" or "mean".
export function polypsOf(mask, surface, kind = "peak") {
  const { width, height } = surface;
  const { regions } = label(runsOf(mask, width, height));
  measure(regions, surface, kind);
  return finish(regions, width);
}
