// What is looked at: one item of the list, or the welcome.

import { describe } from "./classes.js";
import { $, announce, counted } from "./dom.js";
import * as items from "./items.js";
import { line } from "./list.js";
import { load, shelf } from "./loading.js";
import { Player } from "./player.js";
import { labelsOf } from "./saving.js";
import { emit, pointOf, state } from "./state.js";
import { analyse } from "./stills.js";
import { Viewer } from "./viewer.js";

export const viewer = new Viewer($("canvas"));
export const player = new Player();

const REST = 100; // ms before the next frame is opened ahead
const PATIENCE = 300; // ms that the frame before is shown while the next one is loaded

let mayLeave = () => true;

// leave() says whether the current item may be left.
export function connect(leave) {
  mayLeave = leave;
}

export async function show(item) {
  if (item !== state.current && !mayLeave()) return;
  const fresh = item !== state.current;
  state.current = item;
  items.list.select(item);
  placeButtons();
  if (fresh) {
    $("stage-facts").textContent = "";
    [state.opened, state.scene] = [null, null];
  }
  $("stage-title").textContent = item ? item.name : "Viewer";
  lay(item, partOf(item));
  if (fresh) emit("current", item);
  if (item?.kind === "image" && isThere(item)) await showStill(item, fresh);
  else if (!$("film").hidden) await showFilm(item);
  else if (!state.scene) emit("scene");
}

const isThere = ({ state: reached }) => reached === "done" || reached === "remote";

function partOf(item) {
  if (!item) return "welcome";
  if (item.kind === "camera") return state.opened?.item.live === item ? "picture" : "wait";
  if (item.kind === "video") return item.state === "done" ? "film" : "wait";
  // While one is loaded the one before stays on the screen, so that nothing flickers.
  return isThere(item) && !$("picture").hidden ? "picture" : "wait";
}

function lay(item, part) {
  for (const id of ["welcome", "wait", "film", "picture"]) $(id).hidden = id !== part;
  if (part !== "film") player.clear();
  if (part !== "picture") {
    [state.opened, state.scene] = [null, null];
    viewer.show(null);
  }
  if (part === "wait") {
    $("wait-text").textContent = isThere(item) && !item.error ? "loading" : line(item);
    $("wait-text").classList.toggle("wrong", Boolean(item.error));
  }
  $("keep").hidden = item?.kind !== "camera";
  $("edit").hidden = item?.kind === "camera";
}

async function showStill(item, fresh) {
  let taken;
  if (item.state === "remote") item.error = null;
  const late = setTimeout(() => item === state.current && lay(item, "wait"), PATIENCE);
  try {
    taken = await shelf.take(item, load);
  } catch (error) {
    shelf.drop(item);
    return cannotShow(item, error);
  } finally {
    clearTimeout(late);
  }
  if (item !== state.current) return;
  lay(item, "picture");
  state.opened = taken;
  refresh(!fresh);
  $("stage-facts").textContent = `${taken.width} × ${taken.height} pixels${item.foreign ? ", shown with the service's overlay" : ""}`;
  $("edit").disabled = Boolean(item.foreign);
  announce(`${item.name}: ${counted(state.scene.polyps.length)}`);
  prepareNext(item);
}

// A frame that the service was to send is asked for again when that is back, or when it is chosen again.
async function cannotShow(item, error) {
  if (error.outage) return untilBack(item, error);
  if (item.state !== "remote") return items.fail(item, `cannot be shown: ${error.message}`);
  item.error = `cannot be shown: ${error.message}`;
  items.list.update(item);
  if (item === state.current) lay(item, "wait");
}

// The frame that comes after is opened ahead, and one before is still open.
function prepareNext(item) {
  const next = state.items[state.items.indexOf(item) + 1];
  if (next?.kind !== "image" || !isThere(next)) return;
  setTimeout(() => item === state.current && shelf.prepare(next, load), REST); // not while this one is being drawn
}

async function showFilm(item) {
  try {
    const found = await player.show(item);
    if (!found) return;
    $("stage-facts").textContent = player.facts;
    emit("scene");
    announce(`${item.name}: ${counted(found.tracks.length)}`);
  } catch (error) {
    player.clear();
    if (!error.outage) return items.fail(item, error.message);
    await untilBack(item, error);
  }
}

// Waits until the service responds again, and shows what is looked at then.
async function untilBack(item, error) {
  item.error = `${error.message} (trying again)`;
  items.list.update(item);
  if (item === state.current) lay(item, "wait");
  await items.outage.over(item.signal);
  item.error = null;
  items.list.update(item);
  if (item === state.current) await show(item);
}

// A frame of a camera.
export function showLive(item, opened) {
  if (item !== state.current) return;
  const first = $("picture").hidden;
  state.opened = opened;
  if (first) show(item);
  refresh(!first);
}

// After a change of frame, operating point or correction. keep: where we look stays.
export function refresh(keep) {
  const { current, opened } = state;
  if (!opened) return;
  state.scene = analyse(opened, pointOf(current));
  if (current.kind === "image") describe(state.scene.polyps, labelsOf(current), state.labels.classes);
  viewer.show(state.scene, keep);
  if (current.kind === "image") {
    current.count = state.scene.polyps.length;
    items.list.update(current);
  }
  emit("scene");
}

export function placeButtons() {
  const at = state.items.indexOf(state.current);
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === state.items.length - 1;
  $("position").textContent = at >= 0 && state.items.length > 1 ? `${at + 1} of ${state.items.length}` : "";
}

// Whether there was one to go to.
export function go(way) {
  const next = state.items[state.items.indexOf(state.current) + way];
  if (next) show(next);
  return Boolean(next);
}

// Zooms to a polyp; to the whole frame where it was chosen already.
export function select(index) {
  const { scene } = state;
  viewer.selected = viewer.selected === index ? -1 : index;
  if (scene.polyps[viewer.selected]) viewer.zoomTo(scene.polyps[viewer.selected].box);
  else viewer.fit();
  emit("scene");
}
