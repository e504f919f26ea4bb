// The versions of a frame, and who else is at it.

import { correction } from "./correcting.js";
import { $, announce } from "./dom.js";
import { takeFrame } from "./loading.js";
import { STATES } from "./review.js";
import { told } from "./saving.js";
import * as sets from "./sets.js";
import { show } from "./stage.js";
import { emit, state, when } from "./state.js";

const HERE = 10_000; // ms between two signs of life

let watched = null; // {item, timer}

const moment = (time) => new Date(time).toLocaleString([], { dateStyle: "short", timeStyle: "short" });

// --- versions ---

async function fill() {
  const item = state.current;
  const has = item?.frame?.version > 0 && !correction.active;
  $("versions-part").hidden = !has;
  if (!has || !$("versions-part").open) return;
  const found = await told(() => sets.versions(item.set, item.frame.hash));
  if (!found || item !== state.current) return;
  $("versions").replaceChildren(...found.map((version) => row(item, version)));
}

function row(item, { version, state: reviewed, author, time, restored }) {
  const element = document.createElement("li");
  const text = document.createElement("span");
  text.textContent = `${version}: ${STATES[reviewed].toLowerCase()}, ${author}, ${moment(time)}${restored === null || restored === undefined ? "" : `, from ${restored}`}`;
  element.append(text);
  if (version !== item.frame.version) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Take back to this" });
    button.addEventListener("click", () => takeBack(item, version));
    element.append(button);
  }
  return element;
}

async function takeBack(item, version) {
  const saved = await told(() => sets.takeBack(item.set, item.frame.hash, version, item.frame.version));
  if (!saved) return;
  takeFrame(item, saved);
  emit("saved", item);
  announce(`Back to version ${version}`);
  if (item === state.current) show(item);
}

// --- people ---

function watch(item) {
  if (watched) {
    clearInterval(watched.timer);
    sets.presence(watched.item.set, watched.item.frame.hash, true).catch(() => {}); // it is forgotten anyway
  }
  watched = null;
  $("people").hidden = true;
  if (!item?.frame) return;
  watched = { item, timer: setInterval(tell, HERE) };
  tell();
}

// Says that we are here, and hears who else is.
async function tell() {
  const { item } = watched;
  const found = await sets.presence(item.set, item.frame.hash).catch(() => null);
  if (!found || watched?.item !== item) return;
  const names = found.others.map(({ name }) => name);
  const newer = found.version > item.frame.version;
  const parts = [
    ...(names.length ? [`${names.join(" and ")} ${names.length > 1 ? "are" : "is"} at this frame too`] : []),
    ...(newer ? [`${found.author} saved version ${found.version}`] : []),
  ];
  $("people").hidden = !parts.length;
  $("people").replaceChildren(parts.join("; "));
  if (!newer || correction.active) return;
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Show it" });
  button.addEventListener("click", async () => {
    const frame = await told(() => sets.frame(item.set, item.frame.hash));
    if (!frame) return;
    takeFrame(item, frame);
    emit("saved", item);
    show(item);
    tell();
  });
  $("people").append(" ", button);
}

$("versions-part").addEventListener("toggle", fill);
when("scene", () => {
  const { current } = state;
  if (current?.frame && watched?.item !== current) watch(current);
});
when("current", (item) => {
  watch(item?.kind === "image" ? item : null);
  fill();
});
when("saved", (item) => item === state.current && fill());
when("scene", () => ($("versions-part").hidden = !(state.current?.frame?.version > 0) || correction.active));
addEventListener("pagehide", () => watch(null));
