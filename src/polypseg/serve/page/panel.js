// What was found: the list of polyps or tracks, the sliders, what can be downloaded.

import { correction } from "./correcting.js";
import { fillList, polypEntries, trackEntries } from "./details.js";
import { $, counted, on } from "./dom.js";
import { fillSliders } from "./point.js";
import { fillDownloads } from "./saves.js";
import { player, refresh, select, viewer } from "./stage.js";
import { state, when } from "./state.js";
import { isJudged } from "./stills.js";

const REASONS = {
  dark: "it is black, or nearly",
  outside: "it shows no inside of a body",
  blurred: "it is out of focus",
  glare: "it is washed out by glare",
};

export function fillDetails() {
  const { scene, current } = state;
  const film = current?.kind === "video" && !$("film").hidden;
  fillList($("polyps"), film ? trackEntries(player.tracks, (seconds) => player.jump(seconds)) : polypRows());
  $("polyps-text").textContent = film || scene ? summary(film) : "Nothing to show yet.";
  fillSliders(correction.active || !(scene || (film && player.hasFile)), film);
  $("faint-label").hidden = film;
  tellVerdict();
  $("canvas").setAttribute("aria-label", scene ? `${current.name}: ${counted(scene.polyps.length)}` : "Frame");
  fillDownloads();
}

function polypRows() {
  const { scene } = state;
  if (!scene) return [];
  if (!correction.active) return polypEntries(scene, viewer.selected, select);
  const { editor } = correction;
  return polypEntries(editor, editor.chosen, (index) => editor.pick(index));
}

function summary(film) {
  const { scene } = state;
  const shown = counted(film ? player.tracks.length : polypRows().length);
  if (film || correction.active) return shown;
  if (!isMine() && !isJudged(scene.item)) return `Cannot be judged: ${REASONS[scene.item.answer.quality.reason] ?? "it is unclear"}.`;
  const faint = scene.faint.length;
  return shown + (faint ? `; ${faint} region${faint > 1 ? "s" : ""} of less confidence, ${viewer.options.faint ? "dashed" : "hidden"}` : "");
}

const isMine = () => Boolean(state.scene?.item.mask);

// A frame that cannot be judged says so in place of polyps.
function tellVerdict() {
  const { scene } = state;
  const unclear = Boolean(scene) && !correction.active && !isMine() && !isJudged(scene.item);
  $("verdict").hidden = !unclear;
  if (!unclear) return;
  $("verdict-text").textContent = `This frame cannot be judged: ${REASONS[scene.item.answer.quality.reason] ?? "it is unclear"}.`;
  $("verdict-anyway").hidden = !scene.faint.length;
}

on("verdict-anyway", "click", () => {
  for (const one of [state.scene.item, state.current]) one.anyway = true; // a camera's next frames too
  refresh(true);
});
on("faint", "change", fillDetails);
when("scene", fillDetails);
