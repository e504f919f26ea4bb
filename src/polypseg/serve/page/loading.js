// What is looked at, brought from where it is: the frame, the service's prediction, and the mask that people made.

import * as api from "./api.js";
import { decodeGrey } from "./png.js";
import * as sets from "./sets.js";
import { emit } from "./state.js";
import { open, picture, Shelf, takeAnswer } from "./stills.js";

export const shelf = new Shelf(forget);

const hasMask = ({ frame }) => frame?.version > 0 && frame.state !== "predicted";

// An item as `open` gives it.
export async function load(item) {
  if (!item.file) item.file = new File([await sets.image(item.set, item.frame.hash)], item.name);
  if (!item.answer) takeAnswer(item, await api.segment(item.file, item.name, { signal: item.signal }));
  await loadMask(item);
  return open(item, item.shown ? await createImageBitmap(item.shown) : await picture(item));
}

// The newest mask that people made, as item.mask.
export async function loadMask(item) {
  if (item.mask || !hasMask(item)) return;
  const { hash, version } = item.frame;
  item.mask = await readMask(item.set, hash, version);
}

// Uint8Array of 0 and 1.
export async function readMask(set, hash, version) {
  const { pixels } = await decodeGrey(new Uint8Array(await sets.mask(set, hash, version)));
  for (let at = 0; at < pixels.length; at++) pixels[at] = pixels[at] > 127 ? 1 : 0;
  return pixels;
}

// What the service has too is not kept.
function forget(item) {
  if (hasMask(item)) item.mask = null;
  if (item.state !== "remote") return;
  item.file = item.shown = null;
}

// The frame as the service has it; where that is another version than before, its mask is loaded again.
export function takeFrame(item, frame, mask = null) {
  const another = frame.version !== (item.frame?.version ?? 0);
  if (mask || another) item.mask = mask;
  item.frame = frame;
  item.proposed = null;
  item.labels = item.relabelled = null;
  if (another && mask === null) shelf.drop(item);
  if (item.state === "remote") renewThumbnail(item);
}

// The address stays, so that the browser would show the picture that it has.
export async function renewThumbnail(item) {
  const blob = await sets.freshThumbnail(item.set, item.frame.hash).catch(() => null);
  if (!blob) return;
  if (item.thumbnail?.startsWith("blob:")) URL.revokeObjectURL(item.thumbnail);
  item.thumbnail = URL.createObjectURL(blob);
  emit("thumbnail", item);
}
