// The one correction of the page, and how it begins and ends.

import { Correction } from "./correction.js";
import { $, counted, on, tell } from "./dom.js";
import { save, stem } from "./download.js";
import * as api from "./api.js";
import * as sets from "./sets.js";
import { go, refresh, show, viewer } from "./stage.js";
import { emit, pointOf, state, when } from "./state.js";
import { told } from "./saving.js";
import { setMode, modes } from "./modes.js";

export const correction = new Correction(viewer);

let looked = null; // how it was shown before the correction

correction.addEventListener("toggle", () => {
  if (correction.active) {
    looked = modes();
    setMode("fill", 0.45);
    viewer.set({ compare: 0 });
  } else if (looked) setMode(looked.mode, looked.opacity);
  $("save-next").hidden = !state.project;
  $("save-edit").classList.toggle("main", !state.project);
  emit("scene");
});
correction.addEventListener("change", () => correction.active && emit("scene"));
correction.addEventListener("saved", ({ detail: { item, onwards } }) => {
  tell(`Saved as correction ${stem(item.name)}`);
  if (item === state.current) show(item);
  if (onwards) go(1);
});

export function edit() {
  const { current, scene } = state;
  if (scene && current.kind === "image" && !current.foreign && !correction.active) correction.begin(current, scene, pointOf(current));
}

on("edit", "click", edit);
on("discard", "click", () =>
  told(async () => {
    const item = state.current;
    item.mask = null;
    if (item.frame?.version > 0) {
      const saved = await sets.save(item.set, item.frame.hash, { basedOn: item.frame.version, state: "predicted" });
      Object.assign(item, { frame: saved, labels: null });
      emit("saved", item);
    }
    if (item === state.current) refresh(true);
  }),
);

// --- those of the frames that were added to the page ---

export async function countCorrections() {
  const { count } = await api.json("v1/corrections");
  $("corrections").hidden = !count || Boolean(state.project);
  $("corrections-text").textContent = `${counted(count, "correction")} saved, as a data set to train on`;
}

on("corrections-zip", "click", () => told(async () => save(await api.download("v1/corrections.zip"), "corrections.zip")));
when("saved project", () => told(countCorrections));
