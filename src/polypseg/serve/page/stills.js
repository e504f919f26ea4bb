// Frames: asking the service about them, and their analysis in the page.

import * as api from "./api.js";
import { heatOf, pathOf } from "./paint.js";
import { decodeGrey } from "./png.js";
import { findPolyps, polypsOf } from "./polyps.js";
import { Surface } from "./surface.js";

const AT_ONCE = 3; // requests in flight: the service always has one to continue with
const REMEMBERED = 6; // frames whose pixels are kept, for quick steps back and forth
const THUMBNAIL = 96; // pixels

// Sends the frames that wait, in order; changed(item) after each step. Where the service does not respond they wait on,
// and the outage (outage.js) says when to go on.
export class Queue {
  constructor(changed, outage) {
    [this.changed, this.outage] = [changed, outage];
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
      if (!item.signal.aborted) await this.ask(item);
    }
    this.running--;
  }

  async ask(item) {
    item.state = "working";
    item.error = null;
    this.changed(item);
    while (!item.signal.aborted) {
      try {
        takeAnswer(item, await api.segment(item.file, item.name, { signal: item.signal }));
        await illustrate(item);
        item.state = "done";
        item.error = null;
        return this.changed(item);
      } catch (error) {
        if (item.signal.aborted) return;
        item.error = error.message;
        if (!error.outage) {
          item.state = "failed";
          item.final = [406, 413, 415, 422].includes(error.status); // the same file fails again
          return this.changed(item);
        }
        item.state = "waiting";
        item.error += " (trying again)";
        this.changed(item);
        await this.outage.over(item.signal);
      }
    }
  }
}

// The maps are kept as the PNGs that they came as: small, so that thousands of frames fit into memory.
export function takeAnswer(item, { probability, outside, ...answer }) {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  item.answer = answer;
  item.map = bytes(probability);
  item.outside = outside ? bytes(outside) : null;
}

const decoded = async (item) => [await decodeGrey(item.map), item.outside ? await decodeGrey(item.outside) : null];

// The frame as the browser or, where that cannot decode it (TIFF, DICOM), the service's overlay shows it: item.shown.
export async function picture(item) {
  const { width, height } = item.answer;
  item.shown = item.file;
  const found = await createImageBitmap(item.file).catch(() => null);
  if (found?.width === width && found.height === height) return found;
  item.foreign = true;
  item.shown = await api.segment(item.file, item.name, { accept: "image/jpeg", signal: item.signal });
  return createImageBitmap(item.shown);
}

// Gives the item its thumbnail.
export async function illustrate(item) {
  const found = await picture(item);
  item.thumbnail = await thumbnailOf(found, found.width, found.height);
  found.close();
}

// A URL of a small JPEG.
export async function thumbnailOf(source, width, height) {
  const scale = THUMBNAIL / Math.max(width, height);
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 }));
}

// What the viewer needs of a frame. picture: what to draw it from.
export async function open(item, picture = null) {
  const { width, height } = item.answer;
  const [map, outside] = await decoded(item);
  picture ??= await createImageBitmap(item.shown);
  return { item, picture, map, outside, width, height, surface: new Surface(map, width, height), heat: heatOf(map) };
}

// The last frames that were opened. forget(item) when one of them goes.
export class Shelf {
  constructor(forget) {
    this.forget = forget;
    this.opened = new Map();
  }

  // load(item) gives what `open` gives.
  async take(item, load) {
    const opened = this.opened.get(item) ?? load(item);
    this.opened.delete(item);
    this.opened.set(item, opened);
    for (const old of this.opened.keys()) {
      if (this.opened.size <= REMEMBERED) break;
      this.opened.get(old).then(({ picture }) => picture.close(), () => {}); // long off the screen
      this.drop(old);
    }
    return opened;
  }

  // Opens it ahead, so that a step to it is quick.
  prepare(item, load) {
    if (this.opened.has(item)) return;
    const opened = load(item);
    opened.catch(() => this.drop(item));
    this.opened = new Map([[item, opened], ...this.opened]); // the first to go
  }

  drop(item) {
    this.opened.delete(item);
    this.forget(item);
  }
}

// What is found at an operating point. A mask that people made goes before it. In a frame that cannot be judged all that
// the model sees is faint.
function found({ item, surface, outside }, point) {
  if (item.mask) return { mask: item.mask, polyps: polypsOf(item.mask, surface, point.confidence), faint: [] };
  const all = findPolyps(surface, point, outside);
  if (isJudged(item)) return all;
  return { mask: new Uint8Array(surface.width * surface.height), polyps: [], faint: [...all.polyps, ...all.faint] };
}

export const isJudged = ({ answer, anyway }) => anyway || answer.quality?.judgeable !== false;

// The viewer's scene: the opened frame with its mask and polyps.
export function analyse(opened, point) {
  const all = found(opened, point);
  const { polyps, faint } = all;
  return {
    ...opened, polyps, faint, path: pathOf(polyps), faintPath: pathOf(faint),
    get mask() {
      return all.mask;
    },
  };
}

// {surface, outside} of a frame.
export async function surfaceOf(item) {
  const { width, height } = item.answer;
  const [map, outside] = await decoded(item);
  return { surface: new Surface(map, width, height), outside };
}

// The polyps of a frame, without its picture.
export const polypsAt = async (item, point) => found({ item, ...(await surfaceOf(item)) }, point).polyps;
