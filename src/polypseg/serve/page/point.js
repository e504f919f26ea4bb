// The operating point: what makes polyps of probabilities, moved by two sliders.

import { pause } from "./api.js";
import { $, on } from "./dom.js";
import { differ } from "./followed.js";
import { list } from "./items.js";
import { player, refresh, viewer } from "./stage.js";
import { emit, movePoint, oncePerFrame, pointOf, state, when } from "./state.js";
import { polypsAt } from "./stills.js";

let recounting = 0;
const refreshSoon = oncePerFrame(() => (state.opened ? refresh(true) : emit("scene")));

function tell() {
  const { threshold, min_confidence: confidence } = pointOf(state.current);
  $("threshold-value").textContent = threshold.toFixed(2);
  $("confidence-value").textContent = confidence.toFixed(3);
  $("legend-mark").style.left = `${100 * threshold}%`;
}

export function setPoint(change) {
  movePoint(state.current, change);
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
    item.count = (await polypsAt(item, pointOf(item))).length;
    list.update(item);
    await pause(0);
  }
}

// The sliders for what is shown. hidden: while a mask is corrected. film: whether that is a video.
export function fillSliders(hidden, film) {
  const { current } = state;
  const point = pointOf(current);
  const own = state.model?.operating_point ?? point;
  const followed = followedAt(current) ?? own;
  const byHand = Boolean(current?.mask) && !film;
  $("threshold-part").hidden = hidden;
  $("threshold-own").hidden = byHand;
  $("confidence-own").hidden = byHand;
  for (const id of ["by-hand", "discard"]) $(id).hidden = !byHand;
  $("threshold-reset").disabled = !differ(point, own);
  $("threshold-followed").hidden = !differ(followed, own);
  $("threshold-followed").disabled = !differ(point, followed);
  $("threshold").value = point.threshold;
  $("confidence").value = point.min_confidence;
  tell();
  $("threshold-text").textContent = film
    ? `${player.plain ? "While the video stands still, the frame that is shown follows it. " : ""}The video was followed at ${followed.threshold.toFixed(2)}.`
    : `A pixel belongs to a region if its probability is at least this. The model's own is ${own.threshold.toFixed(2)}.`;
  $("confidence-text").textContent = film
    ? `${player.plain ? "What is drawn over the video's own file follows it. " : ""}The video was followed at ${followed.min_confidence.toFixed(3)}.`
    : `A region is a polyp if its ${own.confidence === "mean" ? "mean" : "highest"} probability is at least this. The model's own is ${own.min_confidence.toFixed(3)}.`;
}

// Where the video that is looked at, or that a frame is from, was followed.
const followedAt = (item) => (item?.film?.item ?? item)?.job?.operating_point;

on("threshold", "input", (event) => setPoint({ threshold: Number(event.target.value) }));
on("confidence", "input", (event) => setPoint({ min_confidence: Number(event.target.value) }));
on("threshold-reset", "click", () => setPoint(state.model.operating_point));
on("threshold-followed", "click", () => setPoint(followedAt(state.current)));
on("faint", "change", (event) => viewer.set({ faint: event.target.checked }));
when("item", (item) => {
  if (item.state === "done" && item.kind === "image" && item.answer && differ(pointOf(item), item.answer.operating_point)) recountSoon();
});
