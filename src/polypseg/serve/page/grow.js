// Click to segment: the region that the model itself sees around a place, at a lower threshold. The same rule as the
// service's (inference/prompting.py). No document in here.

import { filled, label, regionAt, RunsBuilder } from "./runs.js";

const RATIO = 0.5; // of the highest probability around the click
const LEAST = 0.02; // below it the map knows nothing

// {place, level} of a click: where around it the map is highest, and the level down to which its region grows. null where
// the model sees nothing.
export function seedAt({ map, width, height, most }, [x, y]) {
  const cell = (value, from, to) => Math.min(Math.max(Math.floor((value * to) / from), 0), to - 1);
  const [column, row] = [cell(x, width, map.width), cell(y, height, map.height)];
  let best = { value: -1 };
  for (let ny = Math.max(row - 1, 0); ny <= Math.min(row + 1, map.height - 1); ny++) {
    for (let nx = Math.max(column - 1, 0); nx <= Math.min(column + 1, map.width - 1); nx++) {
      const value = map.pixels[ny * map.width + nx] / most;
      if (value > best.value) best = { value, place: [((nx + 0.5) * width) / map.width, ((ny + 0.5) * height) / map.height] };
    }
  }
  if (best.value < LEAST) return null;
  return { place: best.place, level: Math.max(RATIO * best.value, LEAST) };
}

// Of a region of the mask that a place lies in, what is connected to the place and no likelier than it: {area, box, runs}.
export function shed(surface, region, place) {
  const [x, y] = place.map(Math.floor);
  const most = Math.fround(surface.at(place));
  const parts = new RunsBuilder(surface.width, surface.height);
  for (const { y: row, from, to } of region.runs) {
    const values = surface.row(row, from, to);
    for (let at = from; at < to; at++) if (values[at] <= most) parts.add(row, at, at + 1);
  }
  return regionAt(label(parts.done()).regions, [x, y]);
}

// The region around a place where the probability is at least the level, its holes filled: {area, box, runs}, or null.
export function grow(surface, place, level) {
  const found = regionAt(label(surface.runs(level)).regions, place);
  if (!found) return null;
  const alone = new RunsBuilder(surface.width, surface.height);
  for (const { y, from, to } of found.runs) alone.add(y, from, to);
  return label(filled(alone.done())).regions[0];
}
