// What is known already of frames that were added: by their content, whatever they are called.

import { list } from "./items.js";
import { takeFrame } from "./loading.js";
import * as sets from "./sets.js";
import { show } from "./stage.js";
import { correction } from "./correcting.js";
import { state, when } from "./state.js";

const GATHER = 150; // ms in which frames are asked about together

let asked = [];

async function ask() {
  const these = asked;
  asked = [];
  await recall(these);
}

// Gives items of which a prediction is there what people made of their frames.
export async function recall(these) {
  const found = await sets.known(sets.OWN, [...new Set(these.map(({ answer }) => answer.hash))]).catch(() => new Map());
  for (const item of these) {
    const frame = found.get(item.answer.hash);
    if (!frame || item.frame || frame.deleted) continue;
    takeFrame(item, frame);
    item.count = frame.version > 0 ? frame.polyps.length : item.count;
    list.update(item);
    if (item === state.current && frame.version > 0 && !correction.active) show(item);
  }
}

when("item", (item) => {
  if (item.kind !== "image" || item.state !== "done" || item.set !== sets.OWN || item.frame || !item.answer?.hash || item.asked) return;
  item.asked = true;
  if (!asked.length) setTimeout(ask, GATHER);
  asked.push(item);
});
