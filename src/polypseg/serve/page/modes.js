// How polyps are shown: contour, fill, heat map or not at all, with an opacity.

import { $, on } from "./dom.js";
import { viewer } from "./stage.js";

// Heat maps begin see-through, lines do not.
const OPACITY = { contour: 1, fill: 0.4, heat: 0.7, off: 1 };

export const modes = () => ({ mode: viewer.options.mode, opacity: viewer.options.opacity });

export function setMode(mode, opacity = OPACITY[mode]) {
  document.querySelector(`[name=mode][value=${mode}]`).checked = true;
  $("opacity").value = opacity;
  $("legend").hidden = mode !== "heat";
  viewer.set({ mode, opacity });
}

let shownMode = "contour";
export function toggleOverlay() {
  if (viewer.options.mode !== "off") shownMode = viewer.options.mode;
  setMode(viewer.options.mode === "off" ? shownMode : "off");
}

on("compare", "input", (event) => viewer.set({ compare: Number(event.target.value) }));
on("opacity", "input", (event) => viewer.set({ opacity: Number(event.target.value) }));
for (const radio of document.querySelectorAll("[name=mode]")) {
  radio.addEventListener("change", () => setMode(radio.value));
}
on("zoom-in", "click", () => viewer.zoomBy(1.4));
on("zoom-out", "click", () => viewer.zoomBy(1 / 1.4));
on("zoom-fit", "click", () => viewer.fit());
