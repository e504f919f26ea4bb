// The buttons that download what is shown.

import * as api from "./api.js";
import { correction } from "./correcting.js";
import { $, tell } from "./dom.js";
import * as files from "./download.js";
import { loadMask } from "./loading.js";
import { viewer } from "./stage.js";
import { pointOf, state, when } from "./state.js";
import { polypsAt } from "./stills.js";

export function fillDownloads() {
  const { current, scene } = state;
  const buttons = [];
  const offer = (text, run) => buttons.push([text, run]);
  const done = state.items.filter((item) => item.kind === "image" && item.answer && item.state !== "failed");
  if (current?.kind === "video" && current.job?.state === "done") {
    const { id } = current.job;
    for (const name of current.job.files) offer(name, () => files.follow(api.jobFile(id, name), name));
  } else if (scene && !correction.active) {
    const { answer } = current.kind === "image" ? current : state.opened.item;
    const name = files.stem(answer.source);
    const corrected = Boolean(current.mask);
    offer("Mask (PNG)", async () => files.save(await files.maskBlob(scene.mask, scene.width, scene.height), `${name}.png`));
    offer("Overlay (PNG)", async () => files.save(await files.overlayBlob(scene, viewer.options), `${name}.overlay.png`));
    offer("JSON", () =>
      files.save(files.jsonBlob(files.record(answer, { polyps: scene.polyps, point: pointOf(current), corrected })), `${name}.json`),
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
  try {
    const frames = [];
    for (const item of done) {
      await loadMask(item);
      frames.push({ answer: item.answer, polyps: await polypsAt(item, pointOf(item)) });
    }
    files.save(files.jsonBlob(files.coco(frames, $("intended").textContent)), "coco.json");
  } catch (error) {
    tell(error.message, true);
  }
}

when("counted", fillDownloads);
