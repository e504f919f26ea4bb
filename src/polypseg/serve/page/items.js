// What the list contains: added, computed, removed, counted.

import * as api from "./api.js";
import { $, announce, bytes, counted, on, tell } from "./dom.js";
import { isVideo, sort } from "./intake.js";
import { List } from "./list.js";
import { Outage } from "./outage.js";
import * as sets from "./sets.js";
import { emit, oncePerFrame, state, when } from "./state.js";
import { Queue } from "./stills.js";
import { follow, picture } from "./video.js";

let onShow = () => {}; // (item)
let mayLeave = () => true; // whether the current item may be left

export const list = new List($("list"), (item) => onShow(item), remove);
export const outage = new Outage(() => state.items.filter((item) => item.state === "waiting").length);
const queue = new Queue(changed, outage);
const count = oncePerFrame(countProgress);

// show(item) shows one; leave() says whether the current one may be left.
export function connect(show, leave) {
  [onShow, mayLeave] = [show, leave];
}

export function newItem(kind, name, file) {
  const control = new AbortController();
  return { kind, name, file, set: sets.OWN, state: "waiting", error: null, abort: () => control.abort(), signal: control.signal };
}

// Items of the list, at its end or after another one. shown: whether the first is looked at, where nothing is yet.
export function add(items, after = null, shown = true) {
  const at = after ? state.items.indexOf(after) + 1 : state.items.length;
  state.items.splice(at, 0, ...items);
  listed();
  if (shown && !state.current && items.length) onShow(items[0]);
}

// Shows other items.
export function replace(items) {
  state.items = items;
  listed();
}

function listed() {
  list.set(state.items);
  emit("items");
  count();
}

// found: [{file, path}].
export async function take(found, ready) {
  const { files: kept, leftOut } = sort(found);
  const left = leftOut ? `${counted(leftOut, "file")} left out: no frames or videos, or masks` : "";
  tell(left || (kept.length ? "" : "Nothing to read was in there"));
  await ready;
  const limits = state.model?.limits;
  const added = kept.map((file) => newItem(isVideo(file) ? "video" : "image", file.name, file));
  for (const item of added) {
    const most = item.kind === "video" ? limits?.max_job_bytes : limits?.max_bytes;
    if (!most || item.file.size <= most) continue;
    item.state = "failed";
    item.error = `has ${bytes(item.file.size)}; this service takes at most ${bytes(most)}`;
    item.final = true;
  }
  add(added);
  const fitting = added.filter((item) => !item.error);
  queue.add(fitting.filter((item) => item.kind === "image"));
  fitting.filter((item) => item.kind === "video").forEach(watch);
}

// Resolves when its job has ended.
export async function watch(item) {
  await follow(item, changed, outage);
  if (!item.former) illustrateFilm(item);
}

export const illustrateFilm = (item) => picture(item, changed);

export function fail(item, error) {
  item.state = "failed";
  item.error = error;
  changed(item);
}

// An item took a step.
export function changed(item) {
  list.update(item);
  count();
  if (item.error && item.state === "failed") announce(`${item.name}: ${item.error}`);
  emit("item", item);
}

const mayPass = (item) => item.kind === "image" && item.state === "failed" && item.file && !item.final;

function retry() {
  const failed = state.items.filter(mayPass);
  failed.forEach((item) => Object.assign(item, { state: "waiting", error: null }));
  failed.forEach(changed);
  queue.add(failed);
}
on("retry", "click", retry);
when("thumbnail", (item) => list.update(item));

// What removing a frame of a set, or a video, does on the service; false where it may not be removed.
async function removeThere(item) {
  if (item.state === "remote") {
    if (!confirm(`Remove ${item.name} from the set? It can be restored from "Removed frames".`)) return false;
    await sets.removeFrame(item.set, item.frame.hash);
  } else if (item.kind === "video" && item.job) {
    if (item.former) return giveUp(item);
    if (!confirm(`Remove ${item.name} and its results from the service?`)) return false;
    await api.removeJob(item.job.id);
  }
  return true;
}

async function giveUp({ name, job }) {
  if (!confirm(`Give up following ${name} anew? What was followed before stays.`)) return false;
  const gone = await api.giveUpJob(job.id);
  if (!gone) tell(`${name} was followed anew already`);
  return gone;
}

export async function remove(item) {
  if (!item || (item === state.current && !mayLeave())) return;
  try {
    if (!(await removeThere(item))) return;
  } catch (error) {
    if (error.status !== 404) return tell(error.message, true);
  }
  drop(item);
}

// Takes an item off the list alone. focus: whether the focus, where it would be lost, goes to the next row.
export function drop(item, focus = true) {
  item.abort();
  item.onRemove?.();
  const at = state.items.indexOf(item);
  if (at < 0) return; // gone already
  const focused = document.activeElement?.closest("#list");
  state.items.splice(at, 1);
  if (item.thumbnail?.startsWith("blob:")) URL.revokeObjectURL(item.thumbnail);
  listed();
  if (item === state.current) {
    state.current = null;
    onShow(state.items[at] ?? state.items[at - 1] ?? null);
  }
  if (focus && (focused || document.activeElement === document.body) && !list.focus(at)) $("files").focus();
}

function countProgress() {
  const stills = state.items.filter((item) => item.kind === "image" && item.state !== "remote");
  const over = stills.filter((item) => ["done", "failed"].includes(item.state)).length;
  $("progress").hidden = stills.length < 2 || over === stills.length;
  $("progress-bar").value = stills.length ? over / stills.length : 0;
  $("progress-text").textContent = `${over} of ${stills.length} frames`;
  if (stills.length > 1 && over === stills.length && !$("progress").dataset.told) announce(`All ${over} frames are done`);
  $("progress").dataset.told = over === stills.length ? "1" : "";
  const failed = state.items.filter(mayPass).length;
  $("retry").hidden = !failed;
  $("retry").textContent = failed > 1 ? `Retry ${failed} failed frames` : "Retry failed frame";
  emit("counted");
}
