// Videos: uploaded as jobs of the service, followed until they are done, and played with the timeline of their polyps.

import * as api from "./api.js";
import { clock } from "./dom.js";

const POLL = 0.7; // seconds

const ending = (names, suffix) => names.find((name) => name.toLowerCase().endsWith(suffix));

// Uploads item.file, or takes up item.job of an earlier visit, and follows it; changed(item) after each step.
export async function follow(item, changed) {
  try {
    if (!item.job) {
      item.state = "uploading";
      item.progress = 0;
      const onProgress = (share) => {
        item.progress = share;
        changed(item);
      };
      changed(item);
      item.job = await api.submitJob(item.file, { onProgress, signal: item.signal });
    }
    while (!item.signal.aborted) {
      take(item);
      changed(item);
      if (["done", "failed", "cancelled"].includes(item.job.state)) return;
      await api.pause(POLL);
      await update(item, changed);
    }
  } catch (error) {
    if (item.signal.aborted) return;
    item.state = "failed";
    item.error = error.message;
    changed(item);
  }
}

// A job continues when the service is started again, so no response is not the end.
async function update(item, changed) {
  try {
    item.job = await api.job(item.job.id);
    item.error = null;
  } catch (error) {
    if (!error.passing) throw error;
    item.error = `${error.message} (trying again)`;
    changed(item);
  }
}

function take(item) {
  const { state, done, total, error } = item.job;
  item.state = { queued: "waiting", running: "working" }[state] ?? state;
  item.progress = total ? done / total : null;
  if (error) item.error = error;
}

// The player and its timeline.
export class Player {
  constructor(video, timeline) {
    [this.video, this.timeline] = [video, timeline];
    this.item = null;
    this.tracks = [];
    video.addEventListener("timeupdate", () => this.follow());
    video.addEventListener("seeking", () => this.follow());
    timeline.addEventListener("click", (event) => {
      if (event.target.closest("button")) return;
      const { left, width } = timeline.getBoundingClientRect();
      this.jump((this.seconds * (event.clientX - left)) / width);
    });
  }

  // The tracks of timeline.json, or null where the item was changed meanwhile. Throws a ServiceError.
  async show(item) {
    this.clear();
    this.item = item;
    const { id, files } = item.job;
    const [film, timeline] = [ending(files, ".mp4"), ending(files, ".timeline.json")];
    const found = JSON.parse(await (await api.download(api.jobFile(id, timeline))).text());
    if (this.item !== item) return null;
    this.video.src = api.jobFile(id, film);
    this.seconds = found.seconds;
    this.tracks = found.tracks;
    this.lay();
    return found;
  }

  clear() {
    this.item = null;
    this.tracks = [];
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.timeline.replaceChildren();
  }

  // Tracks that overlap in time lie below each other.
  lay() {
    const ends = [];
    this.marks = this.tracks.map((track) => {
      let lane = ends.findIndex((end) => end < track.start);
      if (lane < 0) lane = ends.length;
      ends[lane] = track.end;
      const mark = document.createElement("button");
      mark.type = "button";
      mark.textContent = track.id;
      mark.setAttribute("aria-label", `Polyp ${track.id}, ${clock(track.start)} to ${clock(track.end)}`);
      mark.style.left = `${(100 * track.start) / this.seconds}%`;
      mark.style.width = `${(100 * (track.end - track.start)) / this.seconds}%`;
      mark.style.top = `calc(${lane} * var(--lane))`;
      mark.addEventListener("click", () => this.jump(track.start));
      return mark;
    });
    this.needle = document.createElement("div");
    this.needle.className = "needle";
    // As high as all lanes together, also where it has to be scrolled.
    this.needle.style.height = `calc(${Math.max(ends.length, 1)} * var(--lane))`;
    this.timeline.replaceChildren(...this.marks, this.needle);
    this.follow();
  }

  jump(seconds) {
    this.video.currentTime = seconds;
  }

  // To the next polyp's beginning (way 1) or the one's before (-1).
  leap(way) {
    const now = this.video.currentTime;
    const starts = this.tracks.map((track) => track.start).sort((one, other) => one - other);
    const next = way > 0 ? starts.find((start) => start > now + 0.05) : starts.findLast((start) => start < now - 0.05);
    if (next !== undefined) this.jump(next);
  }

  follow() {
    if (!this.needle) return;
    const now = this.video.currentTime;
    this.needle.style.left = `${(100 * now) / this.seconds}%`;
    this.tracks.forEach((track, index) => this.marks[index].classList.toggle("now", track.start <= now && now <= track.end));
  }
}
