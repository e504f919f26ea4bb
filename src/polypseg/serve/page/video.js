// Videos: uploaded as jobs of the service, followed until they are done, and played with the timeline of their polyps.

import * as api from "./api.js";
import { thumbnailOf } from "./stills.js";

const POLL = 0.7; // seconds

const ending = (names, suffix) => names.find((name) => name.toLowerCase().endsWith(suffix));

// Uploads item.file (or what item.submit does in its place), or takes up item.job of an earlier visit, and follows it
// until it has ended; changed(item) after each step.
export async function follow(item, changed, outage) {
  try {
    while (!item.job) await send(item, changed, outage);
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

// Uploads the file; where the service does not respond, waits until it does.
async function send(item, changed, outage) {
  item.state = "uploading";
  item.progress = 0;
  const onProgress = (share) => {
    item.progress = share;
    changed(item);
  };
  changed(item);
  try {
    const how = { onProgress, signal: item.signal };
    item.job = await (item.submit ? item.submit(how) : api.submitJob(item.file, how));
    item.error = null;
  } catch (error) {
    if (!error.outage) throw error;
    Object.assign(item, { state: "waiting", error: `${error.message} (trying again)` });
    changed(item);
    await outage.over(item.signal);
    item.signal.throwIfAborted();
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

// A video is known by its largest polyp; without any, by its middle.
export async function picture(item, changed) {
  if (item.job?.state !== "done") return;
  try {
    const { film, tracks, seconds } = await results(item.job);
    const largest = [...tracks].sort((one, other) => other.largest_view.area - one.largest_view.area)[0];
    const draw = (video) => thumbnailOf(video, video.videoWidth, video.videoHeight);
    const before = item.thumbnail;
    item.thumbnail = await frameOf(film, largest?.largest_view.time ?? seconds / 2, draw);
    if (before) URL.revokeObjectURL(before);
    changed(item);
  } catch {
    // A video without a picture can be watched all the same.
  }
}

// The outputs of a job that has ended: {film, tracks, seconds, width, height, records}. records: of each frame, in order.
export async function results({ id, files }) {
  const text = async (suffix) => (await api.download(api.jobFile(id, ending(files, suffix)))).text();
  const [timeline, lines] = [await text(".timeline.json"), await text(".jsonl")];
  const records = lines.split("\n").filter(Boolean).map((one) => JSON.parse(one));
  return { ...JSON.parse(timeline), film: api.jobFile(id, ending(files, ".mp4")), records };
}

// Runs with the address of a video's own file: the user's, or the one that the service keeps.
export async function withSource({ file, job }, run) {
  if (!file) return run(api.jobUpload(job.id));
  const url = URL.createObjectURL(file);
  try {
    return await run(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

// The frame that a <video> shows, as a PNG.
export function pngOf(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

// A picture of a video file at a time, as `draw(video)` makes it.
export async function frameOf(url, seconds, draw) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, preload: "auto", src: url });
  const happened = (type) =>
    new Promise((resolve, reject) => {
      video.addEventListener(type, resolve, { once: true });
      video.addEventListener("error", () => reject(new Error("the browser cannot play this file")), { once: true });
    });
  try {
    await happened("loadeddata");
    const there = happened("seeked");
    video.currentTime = seconds;
    await there;
    return await draw(video);
  } finally {
    video.removeAttribute("src");
    video.load();
  }
}
