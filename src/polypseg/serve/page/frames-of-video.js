// Frames of a video as frames of their own: looked at, corrected, and their masks carried to the frames beside them.

import * as api from "./api.js";
import { correction, edit } from "./correcting.js";
import { $, counted, on, tell } from "./dom.js";
import { stem } from "./download.js";
import * as items from "./items.js";
import { recall } from "./known.js";
import { decodeGrey } from "./png.js";
import { told } from "./saving.js";
import { player, show } from "./stage.js";
import { state, when } from "./state.js";
import { illustrate, takeAnswer, thumbnailOf } from "./stills.js";
import { frameOf, pngOf, withSource } from "./video.js";

const REACH = 8; // frames carried to, before and after

// A frame of a video as an item; film: {item, times}, index: its number.
async function still(film, index) {
  const { item: video, times } = film;
  const draw = async (source) => {
    const thumbnail = await thumbnailOf(source, source.videoWidth, source.videoHeight);
    return { blob: await pngOf(source), thumbnail };
  };
  const { blob, thumbnail } = await withSource(video, (url) => frameOf(url, times[index], draw));
  const name = `${stem(video.name)}-${String(index).padStart(5, "0")}.png`;
  const item = items.newItem("image", name, new File([blob], name, { type: "image/png" }));
  return Object.assign(item, { film, index, thumbnail });
}

const filmOf = () => ({ item: player.item, times: player.records.map((_, index) => player.timeOf(index)) });

// The frame that is shown, as an item of the list; the one that is there already, where there is one.
async function take() {
  player.video.pause();
  const [film, index] = [filmOf(), player.index];
  const there = state.items.find((item) => item.film?.item === film.item && item.index === index);
  if (there) return there;
  const item = await still(film, index);
  takeAnswer(item, await api.segment(item.file, item.name));
  await illustrate(item);
  item.asked = true;
  await recall([item]);
  item.state = "done";
  items.add([item], film.item);
  items.changed(item);
  return item;
}

async function look(correct) {
  const item = await told(take);
  if (!item) return;
  await show(item);
  if (correct && item === state.current) edit();
}
on("film-look", "click", () => look(false));
on("film-correct", "click", () => look(true));

// --- neighbours ---

async function carry() {
  const { current: item, scene } = state;
  const { film, index } = item;
  if (!scene.polyps.length) return tell("There is no mask to carry", true);
  const indices = [];
  for (let at = Math.max(index - REACH, 0); at <= Math.min(index + REACH, film.times.length - 1); at++) indices.push(at);
  tell(`Reading ${counted(indices.length, "frame")}…`);
  const stills = [];
  for (const at of indices) stills.push(at === index ? item : await still(film, at));
  tell("Carrying the mask…");
  const { frames } = await api.propagate(stills.map(({ file }) => file), scene.mask, scene, indices.indexOf(index));
  const sure = frames.filter(({ index: at, sure: is }) => is && stills[at] !== item);
  for (const { index: at, sureness, mask } of sure) {
    const { pixels } = await decodeGrey(Uint8Array.from(atob(mask), (letter) => letter.charCodeAt(0)));
    Object.assign(stills[at], { state: "done", proposed: { sureness }, mask: pixels.map((value) => (value > 127 ? 1 : 0)) });
  }
  insert(item, sure.map(({ index: at }) => stills[at]));
  tell(sure.length ? `${counted(sure.length, "frame")} proposed; accept or correct each` : "Nowhere beside it the mask could be carried to with certainty");
  if (sure.length) show(stills[sure[0].index]);
}

// In the order of time around the frame that they come from; what was proposed before and not reviewed makes way.
function insert(item, proposed) {
  for (const old of state.items.filter((one) => one.film?.item === item.film.item && one.proposed)) items.drop(old);
  const isThere = (one) => state.items.some((other) => other.film?.item === item.film.item && other.index === one.index);
  const fresh = proposed.filter((one) => !isThere(one));
  const before = state.items[state.items.indexOf(item) - 1] ?? null;
  items.add(fresh.filter((one) => one.index > item.index), item);
  const earlier = fresh.filter((one) => one.index < item.index);
  if (before) items.add(earlier, before);
  else items.replace([...earlier, ...state.items]);
}

on("neighbours", "click", async () => {
  $("neighbours").disabled = true;
  await told(carry);
  $("neighbours").disabled = false;
});
when("scene", () => ($("neighbours").hidden = !(state.scene && state.current?.film && state.current.mask && !state.current.proposed && !correction.active)));

