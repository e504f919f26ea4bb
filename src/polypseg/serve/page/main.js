// The page: what was added, what is looked at, and what is done with it.

import * as api from "./api.js";
import { Camera } from "./camera.js";
import { Correction, countCorrections } from "./correction.js";
import { fillList, polypEntries, trackEntries } from "./details.js";
import { $, announce, bytes, clock, counted, on, tell } from "./dom.js";
import * as files from "./download.js";
import { chosen, dropped, isVideo, sort } from "./intake.js";
import { listen } from "./keys.js";
import { line, List } from "./list.js";
import { analyse, illustrate, polypsAt, Queue, Shelf } from "./stills.js";
import { follow, Player } from "./video.js";
import { Viewer } from "./viewer.js";

let model = null; // what GET /v1/model says
let items = []; // {kind: "image" | "video" | "camera", name, file, state, error, answer, map, correction, job, …}
let current = null;
let opened = null; // the current frame, as `open` gives it
let scene = null; // and analysed
let threshold = 0.5;
let camera = null;

const viewer = new Viewer($("canvas"));
const player = new Player($("video"), $("timeline"));
const shelf = new Shelf();
const queue = new Queue(changed);
const list = new List($("list"), show, remove);
const correction = new Correction(viewer, fillDetails, (item, mask) => {
  item.correction = mask;
  if (item === current) refresh(true);
});
const postprocessing = () => model?.operating_point ?? {};

// --- adding ---

function newItem(kind, name, file) {
  const control = new AbortController();
  return { kind, name, file, state: "waiting", error: null, abort: () => control.abort(), signal: control.signal };
}

function add(item) {
  items.push(item);
  list.add(item);
  if (!current) show(item);
}

async function take(found) {
  const { files: kept, leftOut } = sort(found);
  const left = leftOut ? `${counted(leftOut, "file")} left out: no frames or videos, or masks` : "";
  tell(left || (kept.length ? "" : "Nothing to read was in there"));
  await ready;
  const added = kept.map((file) => newItem(isVideo(file) ? "video" : "image", file.name, file));
  added.forEach(add);
  const fitting = added.filter((item) => {
    const most = item.kind === "video" ? model?.limits.max_job_bytes : model?.limits.max_bytes;
    const fits = !most || item.file.size <= most;
    if (!fits) fail(item, `has ${bytes(item.file.size)}; this service takes at most ${bytes(most)}`);
    return fits;
  });
  queue.add(fitting.filter((item) => item.kind === "image"));
  fitting.filter((item) => item.kind === "video").forEach((item) => follow(item, changed));
  countProgress();
}

function fail(item, error) {
  item.state = "failed";
  item.error = error;
  changed(item);
}

// An item took a step.
function changed(item) {
  list.update(item);
  countProgress();
  if (item.error) announce(`${item.name}: ${item.error}`);
  if (item === current && !(item.kind === "video" && player.item === item)) show(item);
  if (item.state === "done" && item.kind === "image" && threshold !== item.answer.threshold) recountSoon();
}

async function remove(item) {
  if (item === current && !correction.leave()) return;
  if (item.kind === "video" && item.job) {
    if (!confirm(`Remove ${item.name} and its results from the service?`)) return;
    try {
      await api.removeJob(item.job.id);
    } catch (error) {
      if (error.status !== 404) return tell(error.message, true);
    }
  }
  item.abort();
  if (item.kind === "camera") camera?.stop();
  const at = items.indexOf(item);
  if (at < 0) return; // the camera is gone already
  items.splice(at, 1);
  list.remove(item);
  shelf.drop(item);
  if (item.thumbnail) URL.revokeObjectURL(item.thumbnail);
  countProgress();
  if (item === current) {
    current = null;
    const next = items[at] ?? items[at - 1] ?? null;
    show(next);
    (list.rows.get(next)?.querySelector("button") ?? $("files")).focus();
  }
}

function countProgress() {
  const stills = items.filter((item) => item.kind === "image");
  const over = stills.filter((item) => ["done", "failed"].includes(item.state)).length;
  $("progress").hidden = stills.length < 2 || over === stills.length;
  $("progress-bar").value = stills.length ? over / stills.length : 0;
  $("progress-text").textContent = `${over} of ${stills.length} frames`;
  if (stills.length > 1 && over === stills.length && !$("progress").dataset.told) announce(`All ${over} frames are done`);
  $("progress").dataset.told = over === stills.length ? "1" : "";
  if (current) placeButtons();
  downloadButtons();
}

// --- looking ---

async function show(item) {
  if (item !== current && !correction.leave()) return;
  const fresh = item !== current;
  current = item;
  list.select(item);
  placeButtons();
  if (fresh) $("stage-facts").textContent = "";
  $("stage-title").textContent = item ? item.name : "Viewer";
  const ready = item && (item.kind === "camera" ? opened?.item.live === item : item.state === "done");
  const part = !item ? "welcome" : !ready ? "wait" : item.kind === "video" ? "film" : "picture";
  for (const id of ["welcome", "wait", "film", "picture"]) $(id).hidden = id !== part;
  if (part !== "film") player.clear();
  if (part !== "picture") {
    [opened, scene] = [null, null];
    viewer.show(null);
  }
  if (part === "wait") {
    $("wait-text").textContent = line(item);
    $("wait-text").classList.toggle("wrong", Boolean(item.error));
  }
  $("keep").hidden = item?.kind !== "camera";
  $("edit").hidden = item?.kind === "camera";
  if (part === "picture" && item.kind === "image") await showStill(item, fresh);
  else if (part === "film") await showFilm(item);
  else fillDetails();
}

async function showStill(item, fresh) {
  let taken;
  try {
    taken = await shelf.take(item);
  } catch (error) {
    shelf.drop(item);
    return fail(item, `cannot be shown: ${error.message}`);
  }
  if (item !== current) return;
  opened = taken;
  refresh(!fresh);
  $("stage-facts").textContent = `${opened.width} × ${opened.height} pixels${item.foreign ? ", shown with the service's overlay" : ""}`;
  $("edit").disabled = Boolean(item.foreign);
  announce(`${item.name}: ${counted(scene.polyps.length)}`);
}

async function showFilm(item) {
  try {
    const found = await player.show(item);
    if (!found) return;
    $("stage-facts").textContent = `${found.width} × ${found.height} pixels, ${clock(found.seconds)}`;
    $("timeline-none").hidden = found.tracks.length > 0;
    fillDetails();
    announce(`${item.name}: ${counted(found.tracks.length)}`);
  } catch (error) {
    fail(item, error.message);
  }
}

// After a change of frame, threshold or correction. keep: where we look stays.
function refresh(keep) {
  scene = analyse(opened, threshold, postprocessing());
  viewer.show(scene, keep);
  if (current.kind === "image") {
    current.count = scene.polyps.length;
    list.update(current);
  }
  fillDetails();
}

function placeButtons() {
  const at = items.indexOf(current);
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === items.length - 1;
}

function go(way) {
  const next = items[items.indexOf(current) + way];
  if (next) show(next);
}

// --- what was found ---

function fillDetails() {
  const film = current?.kind === "video" && !$("film").hidden;
  const shown = film
    ? trackEntries(player.tracks, (seconds) => player.jump(seconds))
    : scene ? polypEntries(scene, viewer.selected, select) : [];
  fillList($("polyps"), shown);
  $("polyps-text").textContent = film || scene ? counted(shown.length) : "Nothing to show yet.";
  $("threshold-part").hidden = !scene || correction.active;
  $("threshold").disabled = Boolean(current?.correction);
  $("discard").hidden = !current?.correction;
  $("threshold-reset").disabled = threshold === model?.threshold || Boolean(current?.correction);
  $("threshold").value = threshold;
  $("threshold-value").textContent = threshold.toFixed(2);
  $("threshold-text").textContent = current?.correction
    ? "This mask was corrected by hand; the threshold does not change it."
    : `A pixel is polyp if its probability is at least this. The model's own is ${(model?.threshold ?? 0.5).toFixed(2)}.`;
  $("canvas").setAttribute("aria-label", scene ? `${current.name}: ${counted(scene.polyps.length)}` : "Frame");
  downloadButtons();
}

// Zooms to a polyp; to the whole frame where it was chosen already.
function select(index) {
  viewer.selected = viewer.selected === index ? -1 : index;
  if (scene.polyps[viewer.selected]) viewer.zoomTo(scene.polyps[viewer.selected].box);
  else viewer.fit();
  fillDetails();
}

// --- threshold ---

let waitingFrame = null;
let recounting = 0;

function setThreshold(value) {
  threshold = value;
  $("threshold-value").textContent = threshold.toFixed(2);
  waitingFrame ??= requestAnimationFrame(() => {
    waitingFrame = null;
    if (opened) refresh(true);
  });
  recountSoon();
}

// The counts in the list, one frame after another and not while the slider moves.
async function recountSoon() {
  const turn = ++recounting;
  await api.pause(0.3);
  for (const item of items.filter(({ kind, state }) => kind === "image" && state === "done")) {
    if (turn !== recounting) return;
    item.count = (await polypsAt(item, threshold, postprocessing())).length;
    list.update(item);
    await api.pause(0);
  }
}

// --- correcting ---

function edit() {
  if (scene && current.kind === "image" && !current.foreign && !correction.active) correction.begin(current, scene);
}

// --- camera ---

function toggleCamera() {
  if (camera) return camera.stop();
  const item = newItem("camera", "Camera");
  item.state = "starting";
  camera = new Camera(
    (frame, { rate, seconds }) => {
      frame.item.live = item;
      item.state = rate ? `live, ${rate.toFixed(1)} frames/s` : "live";
      list.update(item);
      if (item !== current) return;
      const first = $("picture").hidden;
      opened = frame;
      if (first) show(item);
      refresh(!first);
      $("stage-facts").textContent = `${frame.width} × ${frame.height} pixels, ${Math.round(1000 * seconds)} ms a frame`;
    },
    (problem) => {
      camera = null;
      $("camera").setAttribute("aria-pressed", "false");
      if (problem) tell(problem, true);
      if (items.includes(item)) remove(item);
    },
  );
  $("camera").setAttribute("aria-pressed", "true");
  add(item);
  show(item);
  camera.start();
}

async function keepFrame() {
  const { file, answer, map } = opened.item;
  const name = `camera-${new Date().toISOString().replace(/[-:]|\..*/g, "").replace("T", "-")}.jpg`;
  const item = newItem("image", name, new File([file], name, { type: file.type }));
  Object.assign(item, { answer: { ...answer, source: name }, map });
  await illustrate(item);
  item.state = "done";
  add(item);
  countProgress();
  tell(`Kept as ${name}`);
}

// --- downloads ---

function downloadButtons() {
  const buttons = [];
  const offer = (text, run) => buttons.push([text, run]);
  const done = items.filter((item) => item.kind === "image" && item.state === "done");
  if (current?.kind === "video" && current.job?.state === "done") {
    const { id } = current.job;
    for (const name of current.job.files) offer(name, () => files.follow(api.jobFile(id, name), name));
  } else if (scene && !correction.active) {
    const { answer } = current.kind === "image" ? current : opened.item;
    const name = files.stem(answer.source);
    const corrected = Boolean(current.correction);
    offer("Mask (PNG)", async () => files.save(await files.maskBlob(scene.mask, scene.width, scene.height), `${name}.png`));
    offer("Overlay (PNG)", async () => files.save(await files.overlayBlob(scene, viewer.options), `${name}.overlay.png`));
    offer("JSON", () =>
      files.save(files.jsonBlob(files.record(answer, { polyps: scene.polyps, threshold, corrected })), `${name}.json`),
    );
  }
  if (done.length) offer(`COCO, ${done.length} frame${done.length > 1 ? "s" : ""} (JSON)`, () => saveCoco(done));
  $("download-part").hidden = !buttons.length;
  const texts = buttons.map(([text]) => text).join("\n");
  const element = $("downloads");
  if (element.dataset.texts !== texts) {
    element.dataset.texts = texts;
    element.replaceChildren(...buttons.map(([text]) => Object.assign(document.createElement("button"), { type: "button", textContent: text })));
  }
  buttons.forEach(([, run], index) => (element.children[index].onclick = run));
}

async function saveCoco(done) {
  const frames = [];
  for (const item of done) frames.push({ answer: item.answer, polyps: await polypsAt(item, threshold, postprocessing()) });
  files.save(files.jsonBlob(files.coco(frames, $("intended").textContent)), "coco.json");
}

// --- token ---

function askToken(again) {
  const dialog = $("token");
  if (again) $("token-text").textContent = "That was not it. The token was given to polypseg serve.";
  $("token-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? $("token-value").value : null), { once: true });
  });
}

// --- beginning ---

async function begin() {
  try {
    model = await api.model();
    threshold = model.threshold;
    $("model").textContent = `${model.name} on ${model.device} (${model.runtime}, ${model.precision})`;
    $("model").title = model.reason;
    $("intended").textContent = model.intended_use;
    await countCorrections();
    for (const job of await api.jobs()) {
      if (job.kind !== "video") continue;
      const item = newItem("video", job.names[0]);
      item.job = job;
      items.push(item);
      list.add(item);
      follow(item, changed);
    }
  } catch (error) {
    $("model").textContent = "not connected";
    tell(error.message, true);
  }
}

api.onTokenNeeded(askToken);
for (const id of ["files", "folder"]) {
  on(id, "change", (event) => {
    take(chosen(event.target));
    event.target.value = "";
  });
}
on("camera", "click", toggleCamera);
on("previous", "click", () => go(-1));
on("next", "click", () => go(1));
on("compare", "input", (event) => viewer.set({ compare: Number(event.target.value) }));
on("opacity", "input", (event) => viewer.set({ opacity: Number(event.target.value) }));
for (const radio of document.querySelectorAll("[name=mode]")) {
  radio.addEventListener("change", () => setMode(radio.value));
}
on("zoom-in", "click", () => viewer.zoomBy(1.4));
on("zoom-out", "click", () => viewer.zoomBy(1 / 1.4));
on("zoom-fit", "click", () => viewer.fit());
on("threshold", "input", (event) => setThreshold(Number(event.target.value)));
on("threshold-reset", "click", () => setThreshold(model.threshold));
on("edit", "click", edit);
on("discard", "click", () => {
  current.correction = null;
  refresh(true);
});
on("keep", "click", keepFrame);
on("help-button", "click", () => $("help").showModal());
viewer.addEventListener("pick", (event) => event.detail >= 0 && select(event.detail));

// Heat maps begin see-through, lines do not.
const OPACITY = { contour: 1, fill: 0.4, heat: 0.7, off: 1 };

function setMode(mode) {
  document.querySelector(`[name=mode][value=${mode}]`).checked = true;
  $("opacity").value = OPACITY[mode];
  viewer.set({ mode, opacity: OPACITY[mode] });
}

let shownMode = "contour";
function toggleOverlay() {
  if (viewer.options.mode !== "off") shownMode = viewer.options.mode;
  setMode(viewer.options.mode === "off" ? shownMode : "off");
}

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
  take(await dropped(event.dataTransfer));
});

const looking = () => !correction.active && !$("picture").hidden;
const watching = () => !$("film").hidden;
const correcting = () => correction.active;
const onCanvas = () => correcting() && document.activeElement === $("canvas");
const brushStep = (event) => (event.shiftKey ? 1 : Math.max(1, correction.editor.size / 3));
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

listen(
  [
    {
      keys: Object.keys(STEPS), shown: "← → ↑ ↓", what: "in a correction: move the brush (with Shift by one pixel)", when: onCanvas,
      run: (event) => correction.editor.step(...STEPS[event.key].map((way) => way * brushStep(event))),
    },
    { keys: [" "], shown: "Space", what: "in a correction: draw at the brush", when: onCanvas, run: () => correction.editor.dab() },
    { keys: ["ArrowRight", "n"], shown: "→ n", what: "next frame or video", when: () => !correction.active, run: () => go(1) },
    { keys: ["ArrowLeft", "p"], shown: "← p", what: "previous frame or video", when: () => !correction.active, run: () => go(-1) },
    {
      keys: [..."123456789"], shown: "1 … 9", what: "zoom to this polyp; in a video, jump to its largest view", when: () => !correction.active,
      run: (event) => $("polyps").children[Number(event.key) - 1]?.firstChild.click(),
    },
    { keys: ["0"], shown: "0", what: "whole frame", when: () => looking() || correcting(), run: () => viewer.fit() },
    { keys: ["+", "="], shown: "+", what: "zoom in", when: () => looking() || correcting(), run: () => viewer.zoomBy(1.4) },
    { keys: ["-"], shown: "−", what: "zoom out", when: () => looking() || correcting(), run: () => viewer.zoomBy(1 / 1.4) },
    { keys: ["c"], shown: "c", what: "contour", when: looking, run: () => setMode("contour") },
    { keys: ["f"], shown: "f", what: "fill", when: looking, run: () => setMode("fill") },
    { keys: ["h"], shown: "h", what: "heat map", when: looking, run: () => setMode("heat") },
    { keys: ["o"], shown: "o", what: "polyps off and on", when: looking, run: toggleOverlay },
    { keys: ["]"], shown: "]", what: "in a video: to the next polyp", when: watching, run: () => player.leap(1) },
    { keys: ["["], shown: "[", what: "in a video: to the polyp before", when: watching, run: () => player.leap(-1) },
    { keys: ["e"], shown: "e", what: "correct the mask", when: looking, run: edit },
    { keys: ["b"], shown: "b", what: "in a correction: brush", when: correcting, run: () => correction.choose("brush") },
    { keys: ["r"], shown: "r", what: "in a correction: eraser", when: correcting, run: () => correction.choose("eraser") },
    { keys: ["["], shown: "[", what: "in a correction: smaller", when: correcting, run: () => correction.resize(correction.editor.size / 1.2) },
    { keys: ["]"], shown: "]", what: "in a correction: larger", when: correcting, run: () => correction.resize(correction.editor.size * 1.2 + 1) },
    { keys: ["Ctrl+z"], shown: "Ctrl+z", what: "undo", when: () => correcting(), run: (event) => (event.shiftKey ? correction.editor.redo() : correction.editor.undo()) },
    { keys: ["Ctrl+y"], shown: "Ctrl+y", what: "redo", when: correcting, run: () => correction.editor.redo() },
    { keys: ["Ctrl+s"], shown: "Ctrl+s", what: "save the correction", when: correcting, run: () => correction.save() },
    { keys: ["Escape"], shown: "Esc", what: "leave the correction", when: correcting, run: () => correction.leave() },
    { keys: ["?"], shown: "?", what: "this help", when: () => true, run: () => $("help").showModal() },
  ],
  $("keys"),
  $("keys-on"),
);

const ready = begin();
