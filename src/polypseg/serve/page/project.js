// A set that is worked through: its frames as the list, filtered and ordered, and what other people do to it.

import { correction } from "./correcting.js";
import { $, on, tell } from "./dom.js";
import * as items from "./items.js";
import { renewThumbnail } from "./loading.js";
import { STATES } from "./review.js";
import { told } from "./saving.js";
import * as sets from "./sets.js";
import { show } from "./stage.js";
import { emit, state, when } from "./state.js";

const LOOK = 3_000; // ms between two looks at what others did

let own = []; // the items that were added to the page, while a set is open
let chosen = null; // and which of them was looked at
let tag = null;
let turn = 0;

export const setTitle = (name) => ($("sources-title").textContent = name);

// A set's frame as an item.
function itemOf(frame, set) {
  const item = items.newItem("image", frame.name);
  Object.assign(item, { set, frame, state: "remote", thumbnail: sets.thumbnail(set, frame.hash) });
  return item;
}

export async function openSet(project) {
  if (!correction.leave()) return;
  if (!state.project) [own, chosen] = [state.items, state.current];
  state.project = project;
  setTitle(project.name);
  $("order").value = "confidence";
  clearFilter();
  for (const id of ["camera", "files", "folder", "sets-button"]) $(id).closest("label, button").hidden = true;
  $("set-part").hidden = false;
  emit("project");
  await load();
}

export function leaveSet() {
  if (!correction.leave()) return;
  turn++;
  state.project = null;
  setTitle("Frames and videos");
  for (const id of ["camera", "files", "folder", "sets-button"]) $(id).closest("label, button").hidden = false;
  $("set-part").hidden = true;
  tell("");
  state.current = null;
  own = own.filter(({ signal }) => !signal.aborted); // what went meanwhile
  items.replace(own);
  emit("project");
  show(own.includes(chosen) ? chosen : (own[0] ?? null));
}

const share = (id) => ($(id).value === "" ? "" : String(Number($(id).value) / 100));

function filters() {
  return {
    order: $("order").value,
    state: [...$("filter-states").querySelectorAll("input:checked")].map(({ value }) => value),
    label: $("filter-label").value,
    min_area: share("filter-area"),
    max_area: share("filter-area-to"),
    min_confidence: share("filter-confidence"),
    max_confidence: share("filter-confidence-to"),
    name: $("filter-name").value.trim(),
    deleted: $("filter-deleted").checked ? "true" : "",
  };
}

function clearFilter() {
  for (const control of $("filter").querySelectorAll("input, select")) {
    if (control.type === "checkbox") control.checked = false;
    else control.value = "";
  }
}

// The list anew; keep: the frame that is looked at stays, where it is still in it.
async function load(keep = false) {
  const mine = ++turn;
  const set = state.project.id;
  const before = new Map(state.items.filter((item) => item.state === "remote" && item.set === set).map((item) => [item.frame.hash, item]));
  const found = [];
  let first = true;
  const done = await told(async () => {
    await sets.frames(set, filters(), (frames, answer) => {
      if (mine !== turn) return;
      for (const frame of frames) found.push(renewed(before.get(frame.hash), frame) ?? itemOf(frame, set));
      tellCounts(answer);
      if (!first) return;
      first = false;
      const at = keep && found.includes(state.current) ? state.current : (found[0] ?? null);
      if (at !== state.current) state.current = null;
      items.replace(found);
      show(at);
    });
    return true;
  });
  if (done && mine === turn) items.replace(found);
}

// What is known of an item, with what others made of its frame; null where its own mask is an older one.
function renewed(item, frame) {
  if (!item) return null;
  if (item.frame.version !== frame.version) return item === state.current ? item : null;
  const predicted = item.frame.confidence === null && frame.confidence !== null;
  item.frame = frame;
  items.list.update(item);
  if (predicted && items.list.shows(item)) renewThumbnail(item);
  return item;
}

function tellCounts({ total, matching, counts }) {
  const left = counts.predicted ?? 0;
  $("filter-text").textContent = matching === total ? "" : `${matching} of ${total}`;
  tell(total ? `${total - left} of ${total} reviewed` : "The set is empty; import frames");
}

// What others did, and what was computed meanwhile.
async function look() {
  const { project } = state;
  if (!project || document.hidden || correction.active) return;
  const found = await sets.revision(project.id, tag).catch(() => null);
  if (!found || project !== state.project) return;
  const changed = found.answer !== null && tag !== null;
  tag = found.tag;
  if (changed) await load(true);
}
setInterval(look, LOOK);

export const reload = () => load(true);

for (const [value, text] of Object.entries(STATES)) {
  const label = document.createElement("label");
  label.append(Object.assign(document.createElement("input"), { type: "checkbox", value }), text);
  $("filter-states").append(label);
}

export function fillLabelFilter() {
  const { classes, attributes } = state.labels;
  const options = classes.map(({ name }) => new Option(name, name));
  for (const { name, title, values } of attributes) {
    for (const value of values) options.push(new Option(`${title ?? name}: ${value}`, `${name}:${value}`));
  }
  $("filter-label").replaceChildren(new Option("any", ""), ...options);
}

on("filter", "change", () => load(true));
on("order", "change", () => load(true));
on("set-leave", "click", leaveSet);
when("saved", async (item) => {
  if (!state.project || item.set !== state.project.id) return;
  items.list.update(item);
  const found = await sets.revision(item.set, null).catch(() => null);
  if (!found || !state.project) return;
  tag = found.tag;
  tellCounts({ ...found.answer, matching: found.answer.total });
});
