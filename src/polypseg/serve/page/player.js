// A video: played, stepped through frame by frame, with the timeline of its polyps below. Over the video's own file the
// polyps are drawn here and follow threshold and least confidence; without it, the service's drawn video is shown.

import * as api from "./api.js";
import { $, clock, on } from "./dom.js";
import { FilmMaps } from "./film-maps.js";
import { words } from "./followed.js";
import { pathOf, paintOutline, paintPolyps } from "./paint.js";
import { results } from "./video.js";
import { emit, pointOf, state } from "./state.js";

export class Player {
  constructor() {
    [this.video, this.timeline, this.canvas] = [$("video"), $("timeline"), $("film-canvas")];
    this.item = null;
    this.tracks = [];
    this.maps = new FilmMaps(this.video, () => this.draw());
    for (const type of ["timeupdate", "seeking", "seeked", "loadeddata"]) this.video.addEventListener(type, () => this.follow());
    for (const type of ["play", "pause", "ended"]) this.video.addEventListener(type, () => this.buttons());
    this.video.addEventListener("click", () => this.toggle());
    this.video.addEventListener("error", () => this.item && this.plain && this.cannotPlay());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.timeline.addEventListener("click", (event) => {
      if (event.target.closest("button")) return;
      const { left, width } = this.timeline.getBoundingClientRect();
      this.jump((this.seconds * (event.clientX - left)) / width);
    });
    on("play", "click", () => this.toggle());
    on("frame-back", "click", () => this.step(-1));
    on("frame-on", "click", () => this.step(1));
    on("seek", "input", () => this.jump($("seek").valueAsNumber));
    on("film-overlay", "change", () => this.choose());
    on("film-source", "change", (event) => this.takeFile(event.target.files[0]));
  }

  // What timeline.json says, or null where the item was changed meanwhile. Throws a ServiceError.
  async show(item) {
    if (this.item === item) return null;
    this.clear();
    this.item = item;
    const found = await results(item.job);
    if (this.item !== item) return null;
    Object.assign(this, { film: found.film, seconds: found.seconds, tracks: found.tracks, records: found.records });
    const at = words(item.job.operating_point, state.model?.operating_point);
    this.facts = `${found.width} × ${found.height} pixels, ${clock(found.seconds)}, followed at ${at}`;
    $("timeline-none").hidden = found.tracks.length > 0;
    $("seek").max = found.seconds;
    this.lay();
    this.choose();
    return found;
  }

  clear() {
    this.item = null;
    this.tracks = [];
    this.records = [];
    this.maps.clear();
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = this.source = null;
    this.timeline.replaceChildren();
    this.draw();
  }

  // --- which video ---

  // Whether the video's own file is shown.
  get plain() {
    return Boolean(this.source) && this.source === this.own();
  }

  // Whether there is a file of it, be it shown or not.
  get hasFile() {
    return Boolean(this.item && (this.item.file || this.item.job.upload));
  }

  get overlay() {
    return $("film-overlay").checked;
  }

  // The address of the video's own file, the user's or the one that the service keeps; or null.
  own() {
    const { item } = this;
    if (!item || item.unplayable) return null;
    if (!item.file) return item.job.upload ? api.jobUpload(item.job.id) : null;
    this.url ??= URL.createObjectURL(item.file);
    return this.url;
  }

  choose() {
    const own = this.own();
    $("film-file").hidden = Boolean(own);
    for (const id of ["film-look", "film-correct"]) $(id).disabled = !own;
    $("film-text").textContent = own
      ? this.item.job.upload
        ? "The service keeps the video's file until the video is removed."
        : ""
      : this.item?.unplayable
        ? "The browser cannot play the video's own file; what the service drew is shown."
        : "To correct a frame or follow the video anew, choose its file: the service does not keep it.";
    $("film-overlay").disabled = !own;
    if (!own) $("film-overlay").checked = true;
    this.play(own ?? this.film);
  }

  play(source) {
    if (this.source !== source) {
      const time = this.source ? this.video.currentTime : 0;
      this.source = source;
      this.video.src = source;
      this.video.currentTime = time;
    }
    this.draw();
  }

  takeFile(file) {
    if (!file || !this.item) return;
    Object.assign(this.item, { file, unplayable: false });
    this.choose();
    emit("scene"); // the sliders act now
  }

  cannotPlay() {
    this.item.unplayable = true;
    this.choose();
    emit("scene");
  }

  // --- where ---

  toggle() {
    if (this.video.paused) this.video.play();
    else this.video.pause();
  }

  jump(seconds) {
    this.video.currentTime = seconds;
  }

  // Index of the frame that is shown.
  get index() {
    const now = this.video.currentTime + 1e-3;
    let [low, high] = [0, this.records.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.records[middle].time <= now) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // A time at which the browser surely shows a frame.
  timeOf(index) {
    const { time } = this.records[index];
    const next = this.records[index + 1]?.time ?? this.seconds;
    return time + Math.min(0.5 * Math.max(next - time, 0), 0.02);
  }

  step(way) {
    this.video.pause();
    const index = Math.min(Math.max(this.index + way, 0), this.records.length - 1);
    if (this.records.length) this.jump(this.timeOf(index));
  }

  // To the next polyp's beginning (way 1) or the one's before (-1).
  leap(way) {
    const now = this.video.currentTime;
    const starts = this.tracks.map((track) => track.start).sort((one, other) => one - other);
    const next = way > 0 ? starts.find((start) => start > now + 0.05) : starts.findLast((start) => start < now - 0.05);
    if (next !== undefined) this.jump(next);
  }

  // --- the timeline ---

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

  buttons() {
    $("play").textContent = this.video.paused ? "Play" : "Pause";
    if (!this.video.paused) this.tick();
  }

  tick() {
    if (this.video.paused) return;
    this.follow();
    requestAnimationFrame(() => this.tick());
  }

  follow() {
    if (!this.item || !this.needle) return;
    const now = this.video.currentTime;
    this.needle.style.left = `${(100 * now) / this.seconds}%`;
    $("seek").value = now;
    $("seek").setAttribute("aria-valuetext", clock(now));
    $("film-time").textContent = `${clock(now)} of ${clock(this.seconds)}`;
    this.tracks.forEach((track, index) => this.marks[index].classList.toggle("now", track.start <= now && now <= track.end));
    this.draw();
  }

  // --- the polyps over the video's own file ---

  draw() {
    const { canvas, video } = this;
    const context = canvas.getContext("2d");
    const [width, height] = [Math.round(canvas.clientWidth * devicePixelRatio), Math.round(canvas.clientHeight * devicePixelRatio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const record = this.records?.[this.index];
    if (!this.plain || !this.overlay || !record || !video.videoWidth) return;
    const scale = Math.min(width / record.width, height / record.height);
    context.setTransform(scale, 0, 0, scale, (width - scale * record.width) / 2, (height - scale * record.height) / 2);
    const pixel = devicePixelRatio / scale;
    const scene = this.sceneOf(record);
    paintPolyps(context, scene, { mode: "contour", opacity: 1, faint: false }, pixel);
    context.setLineDash([6 * pixel, 5 * pixel]);
    paintOutline(context, scene.carried, 0.8, pixel);
    context.setLineDash([]);
  }

  // While the threshold is the one that the video was followed at, what was followed; else, while the video stands still,
  // what this frame's own map gives.
  sceneOf(record) {
    const [point, own] = [pointOf(this.item), this.item.job.operating_point];
    if (point.threshold === own.threshold) return shownAt(record, point, own);
    this.maps.ask(() => this.index);
    const polyps = this.video.paused ? this.maps.at(this.index, point, record) : null;
    if (!polyps) return shownAt(record, point, own);
    return { width: record.width, height: record.height, polyps, path: pathOf(polyps), carried: pathOf([]) };
  }
}

// What is drawn of a frame's record: at the least confidence that it was followed at, what has a number; else what reaches it.
function shownAt(record, point, own) {
  const least = point.min_confidence;
  const shown =
    least === own.min_confidence
      ? record.polyps.filter(({ id }) => id !== null)
      : [...record.polyps, ...record.candidates].filter(({ confidence }) => confidence >= least);
  const rings = (ones) => ones.map((one) => ({ ...one, rings: [one.contour] }));
  const polyps = rings(shown).map((one) => ({ ...one, number: one.id ?? "" }));
  const carried = least === own.min_confidence ? (record.carried ?? []) : [];
  return { width: record.width, height: record.height, polyps, path: pathOf(polyps), carried: pathOf(rings(carried)) };
}
