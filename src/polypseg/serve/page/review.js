// Reviewing: what a person says of the frame as a whole. Shown where a set is worked through, or masks were proposed.

import { correction } from "./correcting.js";
import { $, announce, on, tell } from "./dom.js";
import * as items from "./items.js";
import { saveReview, told } from "./saving.js";
import * as sets from "./sets.js";
import { go, refresh, show } from "./stage.js";
import { state, when } from "./state.js";

export const STATES = {
  predicted: "Not reviewed yet",
  accepted: "Accepted",
  corrected: "Corrected",
  no_polyp: "No polyp",
  poor_view: "Poor view",
  unsure: "Unsure",
};

export const reviewing = () => Boolean(state.project || state.current?.proposed) && Boolean(state.scene) && !correction.active;

let busy = false;

// Saves and goes on.
export async function review(reviewed) {
  const { current: item, scene } = state;
  if (!reviewing() || busy || item.frame?.deleted) return;
  busy = true;
  const shown = { ...scene, mask: scene.mask.slice() };
  if (reviewed === "no_polyp") Object.assign(shown, { mask: shown.mask.fill(0), polyps: [] });
  const saved = await told(() => saveReview(item, reviewed, shown));
  busy = false;
  if (!saved) return;
  items.list.update(item);
  if (saved === "theirs") return show(item);
  if (reviewed !== "accepted") tell(`${item.name}: ${STATES[reviewed].toLowerCase()}`);
  if (item !== state.current) return;
  if (!go(1)) {
    refresh(true);
    announce("That was the last frame of the list");
    tell("That was the last frame of the list");
  }
}

function fill() {
  const { current } = state;
  $("review").hidden = !reviewing();
  if ($("review").hidden) return;
  const { frame, proposed } = current;
  for (const id of ["accept", "no-polyp", "poor-view", "unsure"]) $(id).hidden = Boolean(frame?.deleted);
  $("restore").hidden = !frame?.deleted;
  const at = state.items.indexOf(current);
  $("accept").textContent = at === state.items.length - 1 ? "Accept" : "Accept and next";
  $("review-state").textContent = proposed
    ? `Proposed from a neighbouring frame, ${Math.round(100 * proposed.sureness)} % sure`
    : STATES[frame?.state ?? "predicted"] + (frame?.author ? ` by ${frame.author}` : "");
}

on("restore", "click", async () => {
  const item = state.current;
  if (await told(() => sets.restoreFrame(item.set, item.frame.hash))) items.drop(item);
});
for (const [id, reviewed] of [["accept", "accepted"], ["no-polyp", "no_polyp"], ["poor-view", "poor_view"], ["unsure", "unsure"]]) {
  on(id, "click", () => review(reviewed));
}
when("scene current", fill);
