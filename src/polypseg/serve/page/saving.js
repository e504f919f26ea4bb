// Keeping what people made of a frame: as a version on the service, never over somebody else's in silence.

import { entriesOf, wordsOf } from "./classes.js";
import { $, tell } from "./dom.js";
import { maskBlob } from "./download.js";
import { takeFrame } from "./loading.js";
import * as sets from "./sets.js";
import { emit, state } from "./state.js";

// item's labels as they stand: entries of classes.js.
export const labelsOf = (item) => item.labels ?? (item.frame?.version > 0 ? item.frame.polyps : []);

// Saves a frame's state, and its mask where one is given ({mask, polyps, width, height, picture}, with `entries` where the
// labels are others than the item's). Whether it was saved;
// "theirs" where somebody else's version is to be shown instead.
// basedOn: the version that was looked at; a frame that somebody else saved meanwhile has a later one.
export async function saveReview(item, reviewed, scene = null, basedOn = item.frame?.version ?? 0) {
  item.frame ??= await addFrame(item, scene);
  const polyps = scene ? entriesOf(scene.polyps, scene.entries ?? labelsOf(item)).filter(isTold) : null;
  const change = {
    basedOn,
    state: reviewed,
    mask: scene ? await maskBlob(scene.mask, scene.width, scene.height) : null,
    polyps,
  };
  for (;;) {
    try {
      const saved = await sets.save(item.set, item.frame.hash, change);
      takeFrame(item, saved, scene?.mask ?? null);
      emit("saved", item);
      return true;
    } catch (error) {
      if (error.status !== 409 || !error.body.version) throw error;
      const choice = await askConflict(error.message);
      if (choice === "theirs") return showTheirs(item);
      if (choice !== "mine") return false;
      change.basedOn = error.body.version;
    }
  }
}

// What is of the first class without attributes goes without saying.
const isTold = (entry) => wordsOf(entry, state.labels.classes) !== "";

async function showTheirs(item) {
  takeFrame(item, await sets.frame(item.set, item.frame.hash));
  emit("saved", item);
  return "theirs";
}

// As it came, where the service reads it as the browser does; else as a PNG of what is shown.
async function addFrame(item, scene) {
  const asItCame = !scene || ["image/jpeg", "image/png"].includes(item.file.type);
  const frame = await sets.addFrame(item.set, asItCame ? item.file : await asPng(scene), item.name);
  return frame.deleted ? sets.restoreFrame(item.set, frame.hash) : frame;
}

function asPng({ picture, width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function askConflict(line) {
  const dialog = $("conflict");
  $("conflict-text").textContent = line;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

// run() with its failure told in one line; what it gives, or false.
export async function told(run) {
  try {
    return await run();
  } catch (error) {
    tell(error.message, true);
    return false;
  }
}
