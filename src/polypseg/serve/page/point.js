// The operating point: what makes polyps of probabilities, moved by two sliders.

import { pause } from "./api.js";
import { $, on } from "./dom.js";
import { list } from "./items.js";
import { player, refresh, viewer } from "./stage.js";
import { emit, oncePerFrame, state, when } from "./state.js";
import { polypsAt } from "./stills.js";

let recounting = 0;
const refreshSoon = oncePerFrame(() => (state.opened ? refresh(true) : emit("scene")));

// Whether the sliders stand elsewhere than at another operating point.
const moved = (other) => state.point.threshold !== other.threshold || state.point.min_confidence !== other.min_confidence;

function tell() {
  $("threshold-value").textContent = state.point.threshold.toFixed(2);
  $("confidence-value").textContent = state.point.min_confidence.toFixed(3);
  $("legend-mark").style.left = `${100 * state.point.threshold}%`;
}

export function setPoint(change) {
  state.point = { ...state.point, ...change };
  tell();
  refreshSoon();
  player.draw();
  recountSoon();
}

// The counts in the list, one frame after another and not while the slider moves.
async function recountSoon() {
  const turn = ++recounting;
  await pause(0.3);
  for (const item of state.items.filter((one) => one.kind === "image" && one.state === "done" && one.answer && !one.mask && !(one.frame?.version > 0))) {
    if (turn !== recounting) return;
    item.count = (await polypsAt(item, state.point)).length;
    list.update(item);
    await pause(0);
  }
}

// The sliders for what is shown. hidden: while a mask is corrected. film: whether that is a video.
export function fillSliders(hidden, film) {
  const { point, current } = state;
  const own = state.model?.operating_point ?? point;
  const byHand = Boolean(current?.mask) && !film;
  $("threshold-part").hidden = hidden;
  $("threshold-own").hidden = byHand;
  $("confidence-own").hidden = byHand;
  for (const id of ["by-hand", "discard"]) $(id).hidden = !byHand;
  $("threshold-reset").disabled = !moved(own);
  $("threshold").value = point.threshold;
  $("confidence").value = point.min_confidence;
  tell();
  $("threshold-text").textContent = film
    ? `While the video stands still, the frame that is shown follows it. What is drawn while it plays was followed at the model's own, ${own.threshold.toFixed(2)}.`
    : `A pixel belongs to a region if its probability is at least this. The model's own is ${own.threshold.toFixed(2)}.`;
  $("confidence-text").textContent = film
    ? "What is drawn over the video's own file follows it."
    : `A region is a polyp if its ${own.confidence === "mean" ? "mean" : "highest"} probability is at least this. The model's own is ${own.min_confidence.toFixed(3)}.`;
}

on("threshold", "input", (event) => setPoint({ threshold: Number(event.target.value) }));
on("confidence", "input", (event) => setPoint({ min_confidence: Number(event.target.value) }));
on("threshold-reset", "click", () => setPoint(state.model.operating_point));
on("faint", "change", (event) => viewer.set({ faint: event.target.checked }));
when("item", (item) => {
  if (item.state === "done" && item.kind === "image" && item.answer && moved(item.answer.operating_point)) recountSoon();
});
