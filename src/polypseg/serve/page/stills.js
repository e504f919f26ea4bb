// Frames: asking the service about them, and their analysis in the page.

import * as api from "./api.js";
import { decodeGrey } from "./png.js";
import { heatOf, pathOf } from "./paint.js";
import { enlarge, findPolyps, polypsOf } from "./polyps.js";

const AT_ONCE = 3; // requests in flight: the service always has one to continue with
const REMEMBERED = 4; // frames whose pixels are kept, for quick steps back and forth
const THUMBNAIL = 96; // pixels

// Sends the frames that wait, in order; changed(item) after each step.
export class Queue {
  constructor(changed) {
    this.changed = changed;
    this.waiting = [];
    this.running = 0;
  }

  add(items) {
    this.waiting.push(...items);
    while (this.running < AT_ONCE && this.waiting.length) this.work();
  }

  async work() {
    this.running++;
    for (let item = this.waiting.shift(); item; item = this.waiting.shift()) {
      if (item.signal.aborted) continue;
      await ask(item, this.changed);
    }
    this.running--;
  }
}

async function ask(item, changed) {
  item.state = "working";
  changed(item);
  try {
    takeAnswer(item, await api.segment(item.file, item.name, { signal: item.signal }));
    await illustrate(item);
    item.state = "done";
  } catch (error) {
    if (item.signal.aborted) return;
    item.state = "failed";
    item.error = error.message;
  }
  changed(item);
}

// The maps are kept as the PNGs that they came as: small, so that thousands of frames fit into memory.
export function takeAnswer(item, { probability, outside, ...answer }) {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  item.answer = answer;
  item.map = bytes(probability);
  item.outside = outside ? bytes(outside) : null;
}

const decoded = async (item) => [await decodeGrey(item.map), item.outside ? await decodeGrey(item.outside) : null];

// Gives the item its thumbnail. What the browser cannot decode (TIFF, DICOM) is shown by the service's overlay.
export async function illustrate(item) {
  item.shown = item.file;
  const { width, height } = item.answer;
  let picture = await createImageBitmap(item.file).catch(() => null);
  if (picture?.width !== width || picture.height !== height) {
    item.foreign = true;
    item.shown = await api.segment(item.file, item.name, { accept: "image/jpeg", signal: item.signal });
    picture = await createImageBitmap(item.shown);
  }
  const scale = THUMBNAIL / Math.max(width, height);
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  item.thumbnail = URL.createObjectURL(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 }));
}

// What the viewer needs of a frame. picture: what to draw it from.
export async function open(item, picture = null) {
  const { width, height } = item.answer;
  const [map, outside] = await decoded(item);
  picture ??= await createImageBitmap(item.shown);
  return { item, picture, map, outside, width, height, probability: enlarge(map, width, height), heat: heatOf(map) };
}

// The last frames that were opened.
export class Shelf {
  constructor() {
    this.opened = new Map();
  }

  async take(item) {
    const opened = this.opened.get(item) ?? open(item);
    this.opened.delete(item);
    this.opened.set(item, opened);
    for (const [old, pending] of this.opened) {
      if (this.opened.size <= REMEMBERED) break;
      this.opened.delete(old);
      pending.then(({ picture }) => picture.close(), () => {});
    }
    return opened;
  }

  drop(item) {
    this.opened.delete(item);
  }
}

// What is found at an operating point. A mask corrected by hand goes before it.
function found({ item, probability, outside, width, height }, point) {
  if (!item.correction) return findPolyps(probability, width, height, point, outside);
  const polyps = polypsOf(item.correction, probability, width, height, point.confidence);
  return { mask: item.correction, polyps, faint: [] };
}

// The viewer's scene: the opened frame with its mask and polyps.
export function analyse(opened, point) {
  const { mask, polyps, faint } = found(opened, point);
  return { ...opened, mask, polyps, faint, path: pathOf(polyps), faintPath: pathOf(faint) };
}

// The polyps of a frame, without its picture.
export async function polypsAt(item, point) {
  const { width, height } = item.answer;
  const [map, outside] = await decoded(item);
  return found({ item, probability: enlarge(map, width, height), outside, width, height }, point).polyps;
}
