// The service, as the page calls it. Every failure is a ServiceError with one line for people.

import { encodeGrey } from "./png.js";

const TOKEN = "polypseg-token";

export class ServiceError extends Error {
  constructor(message, status = 0, retryAfter = 0, body = {}) {
    super(message);
    this.body = body; // what else the service said
    this.status = status; // 0: no response at all
    this.retryAfter = retryAfter; // seconds
  }

  // Whether the same request may succeed later.
  get passing() {
    return this.status === 429 || this.outage;
  }

  // Whether the service, or the way to it, is gone for now.
  get outage() {
    return this.status === 0 || this.status === 502 || this.status === 503;
  }
}

// --- the token: asked for once, kept until the tab is closed ---

let ask = async () => null;
let asking = null;

// ask(again) gives the token that the user typed, or null; again: the last one was refused.
export function onTokenNeeded(asker) {
  ask = asker;
}

function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

// <video>, <img> and plain links cannot send a header: a cookie for files of jobs and projects, gone with the tab.
function lendToken(token) {
  const path = new URL("v1/", document.baseURI).pathname;
  document.cookie = `polypseg_token=${token}; path=${path}; SameSite=Strict`;
}
addEventListener("pagehide", () => sessionStorage.getItem(TOKEN) && lendToken("; max-age=0"));
addEventListener("pageshow", () => sessionStorage.getItem(TOKEN) && lendToken(sessionStorage.getItem(TOKEN)));

// After a 401. Requests in flight together ask together.
async function renewToken(refused) {
  const known = sessionStorage.getItem(TOKEN);
  if (known !== refused) return;
  asking ??= ask(known !== null).finally(() => (asking = null));
  const token = await asking;
  if (!token) throw new ServiceError("This service needs its token; reload the page to enter it", 401);
  sessionStorage.setItem(TOKEN, token);
  lendToken(token);
}

// --- requests ---

export const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

function failure(status, statusText, body, retryAfter) {
  let [line, said] = ["", {}];
  try {
    said = JSON.parse(body);
    line = said.error ?? (typeof said.detail === "string" ? said.detail : "");
  } catch {
    // Not from the service itself: a proxy's page, say.
  }
  return new ServiceError(line || `The service responded ${status} ${statusText}`.trim(), status, Number(retryAfter) || 0, said);
}

const unreachable = () => new ServiceError("The service does not respond; is it still running?");

export async function call(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
    } catch (error) {
      throw error.name === "AbortError" ? error : unreachable();
    }
    if (response.ok) return response;
    if (response.status !== 401) {
      throw failure(response.status, response.statusText, await response.text(), response.headers.get("Retry-After"));
    }
    await renewToken(token);
  }
}

export const json = async (path, options) => (await call(path, options)).json();

export function form(parts) {
  const body = new FormData();
  for (const [name, value, filename] of parts) {
    if (filename) body.append(name, value, filename);
    else body.append(name, value);
  }
  return body;
}

export const model = () => json("v1/model");

// The response about one frame. accept: application/json (with the probability map) or image/jpeg (the overlay).
// patient: a full queue is waited for.
export async function segment(blob, name, { accept = "application/json", patient = true, signal } = {}) {
  const path = accept === "application/json" ? "v1/segment?probability=true" : "v1/segment";
  for (;;) {
    try {
      const body = form([["file", blob, name]]);
      const response = await call(path, { method: "POST", body, headers: { Accept: accept }, signal });
      return await (accept === "application/json" ? response.json() : response.blob());
    } catch (error) {
      if (error.status !== 429 || !patient) throw error;
      await pause(error.retryAfter || 1);
      signal?.throwIfAborted();
    }
  }
}

// --- masks from prompts and from neighbours ---

export const promptMethods = async () => (await json("v1/prompt")).methods;

// A region for a box or for points [[x, y, 1 or 0], …]. known: {frame} of an earlier response, which saves the upload.
export async function prompt(file, { method, box, points, known }) {
  const parts = [["method", method]];
  if (box) parts.push(["box", JSON.stringify(box.map(Math.round))]);
  if (points?.length) parts.push(["points", JSON.stringify(points)]);
  for (let frame = known; ; ) {
    try {
      const which = frame ? ["frame", frame] : ["file", file, file.name];
      return await json("v1/prompt", { method: "POST", body: form([which, ...parts]) });
    } catch (error) {
      if (error.status === 404 && frame) frame = null;
      else if (error.status === 503 && error.retryAfter) await pause(error.retryAfter);
      else throw error;
    }
  }
}

// The mask (Uint8Array of 0 and 1) of files[at], carried to the others.
export async function propagate(files, mask, { width, height }, at) {
  const blob = await encodeGrey(mask.map((value) => 255 * value), width, height);
  const parts = files.map((file) => ["file", file, file.name]);
  return json("v1/propagate", { method: "POST", body: form([...parts, ["mask", blob, "mask.png"], ["at", at]]) });
}

// --- jobs ---

// All of them, page by page.
export async function jobs() {
  const found = [];
  for (let page; !page || page.length; ) {
    page = await json(`v1/jobs?limit=1000${found.length ? `&after=${found.at(-1).id}` : ""}`);
    found.push(...page);
  }
  return found;
}
export const job = (id) => json(`v1/jobs/${encodeURIComponent(id)}`);

// The first DELETE cancels what has not ended; one of what has ended removes it with its files.
export async function removeJob(id) {
  const remove = () => call(`v1/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
  if ((await remove()).status !== 204) await remove();
}

// Removes a job that is to take the place of another, unless it has done so; whether it is gone.
export async function giveUpJob(id) {
  try {
    await call(`v1/jobs/${encodeURIComponent(id)}?cancel_only=true`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 409) throw error;
    if (!["failed", "cancelled"].includes((await job(id)).state)) return false;
  }
  await removeJob(id);
  return true;
}
export const jobFile = (id, name) => `v1/jobs/${encodeURIComponent(id)}/files/${encodeURIComponent(name)}`;
export const jobUpload = (id) => `v1/jobs/${encodeURIComponent(id)}/upload`;
export const download = async (path) => (await call(path)).blob();

// A video as a job; how: {onProgress(0..1), signal}.
export const submitJob = (file, how) => send("v1/jobs", [["file", file, file.name]], how);

// A job's video followed anew, in its place once that is done. file: the video, where the service does not keep it.
export function followAnew(id, { threshold, min_confidence, min_area }, file, how) {
  const parts = Object.entries({ threshold, min_confidence, min_area, replace: true });
  if (file) parts.push(["file", file, file.name]);
  return send(`v1/jobs/${encodeURIComponent(id)}/again`, parts, how);
}

// XMLHttpRequest, because fetch does not tell how far it is. What was sent as a whole may be a job already: it is not
// broken off but given up.
async function send(path, parts, { onProgress, signal }) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const request = new XMLHttpRequest();
    const done = new Promise((resolve, reject) => {
      request.addEventListener("load", resolve);
      request.addEventListener("error", () => reject(unreachable()));
      request.addEventListener("abort", () => reject(new DOMException("removed", "AbortError")));
    });
    let sent = !parts.some(([, value]) => value instanceof Blob);
    request.upload.addEventListener("progress", (event) => onProgress(event.total ? event.loaded / event.total : 0));
    request.upload.addEventListener("load", () => (sent = true));
    const abort = () => sent || request.abort();
    signal.addEventListener("abort", abort, { once: true });
    request.open("POST", path);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.send(form(parts));
    await done.finally(() => signal.removeEventListener("abort", abort));
    if (request.status === 401) {
      await renewToken(token);
    } else if (request.status === 429) {
      await pause(Number(request.getResponseHeader("Retry-After")) || 1);
      signal.throwIfAborted();
    } else if (request.status >= 400) {
      throw failure(request.status, request.statusText, request.responseText, 0);
    } else {
      const made = JSON.parse(request.responseText);
      if (signal.aborted) await giveUpJob(made.id);
      signal.throwIfAborted();
      return made;
    }
  }
}
