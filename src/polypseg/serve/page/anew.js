// A video followed anew at the operating point that the sliders show: a job of its own, in the list below the former
// results, whose place it takes when it is done. Until then, and where it fails or is given up, those stay.

import * as api from "./api.js";
import { $, announce, on, tell } from "./dom.js";
import { differ, words } from "./followed.js";
import * as items from "./items.js";
import { step } from "./list.js";
import { player, show } from "./stage.js";
import { pointOf, state, when } from "./state.js";

const AGAIN = "The service does not keep the video's file any more: choose it (The video's file…), and follow it anew";

// Of an item, those that are or were to take its place; all but the last have ended without.
const attempts = (item) => state.items.filter(({ former }) => former && former === item);
const running = (item) => attempts(item).find(({ state: reached }) => reached !== "failed" && reached !== "cancelled");

function begin() {
  const { item: former } = player;
  for (const old of attempts(former)) discard(old);
  const item = items.newItem("video", former.name, former.file);
  const point = { ...pointOf(former) };
  item.submit = (how) => submit(former, point, how);
  enter(item, former, point);
}

// An item whose job an earlier visit began; whether it is to take the place of one that is there.
export function followOn(item) {
  const former = item.job.replaces && state.items.find(({ job }) => job?.id === item.job.replaces);
  if (former) enter(item, former, item.job.operating_point);
  return Boolean(former);
}

async function enter(item, former, point) {
  Object.assign(item, { former, anew: point });
  items.add([item], former, false);
  await items.watch(item);
  if (item.state === "done") replace(item);
  else if (item.state === "failed") tell(`${item.name} could not be followed anew: ${item.error}`, true);
}

// From the file that the service keeps; else from the user's own, sent again.
async function submit(former, point, how) {
  if (former.job.upload) {
    try {
      return await api.followAnew(former.job.id, point, null, how);
    } catch (error) {
      if (error.status !== 409) throw error;
      former.job.upload = false;
      if (player.item === former) player.choose();
    }
  }
  if (!former.file) throw new Error(AGAIN);
  return api.followAnew(former.job.id, point, former.file, how);
}

// The former's row and all that hangs on it stay; its job is the new one.
async function replace(item) {
  const { former } = item;
  item.former = null;
  if (former.signal.aborted) {
    items.changed(item); // the former was removed meanwhile: the new one stays alone
    return items.illustrateFilm(item);
  }
  const [seen, time] = [[former, item].includes(player.item), player.video.currentTime];
  Object.assign(former, { job: item.job, error: item.error });
  if (seen) {
    player.clear();
    await show(former);
    player.jump(time);
  }
  items.drop(item, false);
  items.changed(former);
  items.illustrateFilm(former);
  tell(`${former.name} was followed anew at ${words(former.job.operating_point, state.model?.operating_point)}`);
}

function discard(item) {
  if (item.job) api.removeJob(item.job.id).catch(() => {}); // it is in the list again when the page is opened
  items.drop(item);
}

// --- the button beside the sliders, and how far it is below the video ---

function place() {
  const { item } = player;
  const now = item && running(item);
  const own = item?.job?.operating_point;
  const moved = Boolean(own) && differ(pointOf(item), own);
  $("film-anew").hidden = Boolean(now) || !moved || !player.hasFile;
  $("film-anew").textContent = `Follow anew at this ${own && pointOf(item).threshold !== own.threshold ? "threshold" : "confidence"}`;
  $("film-anew-part").hidden = !now;
  $("film-text").hidden = Boolean(now);
  if (!now) return;
  $("film-anew-text").textContent = now.error ?? `Followed anew at ${words(now.anew, state.model?.operating_point)}: ${step(now)}`;
  if (now.progress === null || now.progress === undefined) $("film-anew-bar").removeAttribute("value");
  else $("film-anew-bar").value = now.progress;
}

on("film-anew", "click", () => {
  begin();
  announce("Followed anew; what was followed before is shown until that is done");
});
on("film-anew-stop", "click", () => items.remove(running(player.item)));
when("scene item items", place);
