// Sets of frames on the service (projects): frames with their states, masks, labels and versions; people; fine-tuning.

import { call, form, json } from "./api.js";
import { zipOf } from "./zip.js";

export const OWN = "corrections"; // the set of what was added to the page

const post = (path, parts = [], options = {}) => json(path, { method: "POST", body: form(parts), ...options });
const remove = (path) => call(path, { method: "DELETE" });
const setPath = (project) => `v1/projects/${encodeURIComponent(project)}`;
export const framePath = (project, hash) => `${setPath(project)}/frames/${hash}`;

// --- sets ---

export const labels = () => json("v1/labels");
export const me = () => json("v1/me");
export const projects = () => json("v1/projects");
export const createProject = (name) => post("v1/projects", [["name", name]]);
export const removeProject = (project) => remove(setPath(project));
export const restoreProject = (project) => post(`${setPath(project)}/restore`);
export const deletedProjects = () => json("v1/projects?deleted=true");

const MOST_FILES = 900; // of a form; more travel as one ZIP file

// found: [{file, path}]; the path says which is an image and which its mask or label.
export async function importInto(project, found, state) {
  const named = found.map(({ file, path }) => ({ file, path: path || file.name }));
  const sent = named.length > MOST_FILES ? [{ file: await zipOf(named), path: "set.zip" }] : named;
  return post(`${setPath(project)}/imports`, [["state", state], ...sent.map(({ file, path }) => ["file", file, path])]);
}
export const importState = (project, id) => json(`${setPath(project)}/imports/${encodeURIComponent(id)}`);

export const exportOf = async (project, format) => (await call(`${setPath(project)}/export?format=${format}`)).blob();

// --- frames ---

// filters: {state: […], order, name, …}; all pages. onPage(frames, answer) with each.
export async function frames(project, filters, onPage) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(filters)) {
    for (const one of [value].flat()) if (one !== "" && one !== null) query.append(name, one);
  }
  for (let offset = 0, matching = 1; offset < matching; offset += 1000) {
    const answer = await json(`${setPath(project)}/frames?${query}&offset=${offset}&limit=1000`);
    matching = answer.matching;
    onPage(answer.frames, answer);
  }
}

// Whether anything changed since `tag`: {tag, answer}; answer is null where nothing did.
export async function revision(project, tag) {
  const headers = tag ? { "If-None-Match": tag } : {};
  try {
    const response = await call(`${setPath(project)}/frames?limit=1`, { headers, cache: "no-store" });
    return { tag: response.headers.get("ETag"), answer: await response.json() };
  } catch (error) {
    if (error.status === 304) return { tag, answer: null };
    throw error;
  }
}

export const thumbnail = (project, hash) => `${framePath(project, hash)}/thumbnail`;
export const freshThumbnail = async (project, hash) => (await call(thumbnail(project, hash), { cache: "reload" })).blob();
export const addFrame = (project, file, name) => post(`${setPath(project)}/frames`, [["frame", file, name], ["name", name]]);
export const frame = (project, hash) => json(framePath(project, hash));
export const removeFrame = (project, hash) => remove(framePath(project, hash));
export const restoreFrame = (project, hash) => post(`${framePath(project, hash)}/restore`);
export const image = async (project, hash, signal) => (await call(`${framePath(project, hash)}/image`, { signal })).blob();
export const mask = async (project, hash, version) => (await call(`${framePath(project, hash)}/mask?version=${version}`)).arrayBuffer();

// What is known of frames by their content: Map of hash → Frame.
export async function known(project, hashes) {
  const found = new Map();
  for (let at = 0; at < hashes.length; at += 100) {
    const query = hashes.slice(at, at + 100).map((hash) => `hash=${hash}`).join("&");
    for (const one of (await json(`${setPath(project)}/frames?${query}&limit=1000`)).frames) found.set(one.hash, one);
  }
  return found;
}

// --- versions ---

export const versions = (project, hash) => json(`${framePath(project, hash)}/versions`);
export const takeBack = (project, hash, version, basedOn) =>
  post(`${framePath(project, hash)}/versions/${version}/restore`, [["based_on", basedOn]]);

// mask: a Blob, or null for the newest's own. polyps: [{at, class, attributes}], or null.
export const save = (project, hash, { basedOn, state, mask = null, polyps = null }) =>
  post(`${framePath(project, hash)}/versions`, [
    ["based_on", basedOn],
    ["state", state],
    ...(mask ? [["mask", mask, "mask.png"]] : []),
    ...(polyps ? [["polyps", JSON.stringify(polyps)]] : []),
  ]);

// --- people ---

const CLIENT = crypto.getRandomValues(new Uint32Array(2)).join("-");

export const presence = (project, hash, leave = false) =>
  post(`${framePath(project, hash)}/presence`, [["client", CLIENT], ...(leave ? [["leave", "true"]] : [])], { keepalive: leave });

// --- fine-tuning ---

export const train = (project, epochs) => post(`${setPath(project)}/training`, [["epochs", epochs]]);
export const training = () => json("v1/training");
export const stopTraining = () => remove("v1/training");
