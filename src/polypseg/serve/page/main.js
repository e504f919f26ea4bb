// The page: its parts brought together, and its beginning.

import * as api from "./api.js";
import { correction, countCorrections } from "./correcting.js";
import { $, on, tell } from "./dom.js";
import { chosen, dropped } from "./intake.js";
import * as items from "./items.js";
import { followOn } from "./anew.js";
import "./frames-of-video.js";
import "./known.js";
import "./live.js";
import "./panel.js";
import "./label-form.js";
import { fillLabelFilter } from "./project.js";
import { findMethod } from "./prompt.js";
import { importDropped } from "./set-dialogs.js";
import * as sets from "./sets.js";
import "./shortcuts.js";
import * as stage from "./stage.js";
import { state, when } from "./state.js";
import { askToken } from "./token.js";
import "./versions.js";

items.connect(stage.show, () => correction.leave());
stage.connect(() => correction.leave());
api.onTokenNeeded(askToken);

async function begin() {
  try {
    state.model = await api.model();
    const { name, device, runtime, precision, reason, intended_use: intended, operating_point: point } = state.model;
    state.point = { ...point };
    $("model").textContent = `${name} on ${device} (${runtime}, ${precision})`;
    $("model").title = reason;
    $("intended").textContent = intended;
    await countCorrections();
    state.labels = await sets.labels();
    fillLabelFilter();
    await findMethod();
    for (const job of await api.jobs()) {
      if (job.kind !== "video") continue;
      const item = items.newItem("video", job.names[0]);
      item.job = job;
      if (followOn(item)) continue;
      items.add([item], null, false);
      items.watch(item);
    }
  } catch (error) {
    $("model").textContent = "not connected";
    tell(error.message, true);
  }
}
const ready = begin();

for (const id of ["files", "folder"]) {
  on(id, "change", (event) => {
    items.take(chosen(event.target), ready);
    event.target.value = "";
  });
}

on("previous", "click", () => stage.go(-1));
on("next", "click", () => stage.go(1));
on("help-button", "click", () => $("help").showModal());
stage.viewer.addEventListener("pick", (event) => event.detail >= 0 && stage.select(event.detail));
when("items current counted", stage.placeButtons);
when("item", (item) => {
  if (item === state.current && !(item.kind === "video" && stage.player.item === item)) stage.show(item);
});

const dragsFiles = (event) => event.dataTransfer?.types.includes("Files");
let depth = 0; // dragenter and dragleave come for every element on the way
addEventListener("dragenter", (event) => dragsFiles(event) && document.body.classList.toggle("dropping", ++depth > 0));
addEventListener("dragleave", (event) => dragsFiles(event) && document.body.classList.toggle("dropping", --depth > 0));
addEventListener("dragover", (event) => dragsFiles(event) && event.preventDefault());
addEventListener("drop", async (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dropping");
  const found = await dropped(event.dataTransfer);
  if (state.project) importDropped(found);
  else items.take(found, ready);
});
