// What was found, as a list of buttons.

import { clock, number, percent } from "./dom.js";

// scene: as `analyse` gives it; chosen: index of the polyp that is zoomed to; run(index) on a click.
export const polypEntries = (scene, chosen, run) =>
  scene.polyps.map(({ box: [left, top, right, bottom], area, confidence, label }, index) => ({
    number: index + 1,
    first: `${number(area)} px, ${percent(area / (scene.width * scene.height), 1)} of frame`,
    second: `${label ? `${label}\n` : ""}confidence ${percent(confidence)}\nx ${left}–${right}, y ${top}–${bottom}`,
    pressed: index === chosen,
    run: () => run(index),
  }));

// tracks: of timeline.json; run(seconds) on a click.
export const trackEntries = (tracks, run) =>
  tracks.map(({ id, start, end, largest_view: view }) => ({
    number: id,
    first: `${clock(start)} to ${clock(end)}`,
    second: `largest at ${clock(view.time)}: ${number(view.area)} px,\nconfidence ${percent(view.confidence)}`,
    run: () => run(view.time),
  }));

// Rows are used again, so that the focus stays where it is while the threshold moves or a camera runs.
export function fillList(element, entries) {
  while (element.children.length > entries.length) element.lastChild.remove();
  while (element.children.length < entries.length) {
    const row = element.appendChild(document.createElement("li"));
    row.innerHTML = `<button type="button"><span class="number"></span><span></span><span class="quiet"></span></button>`;
  }
  entries.forEach(({ number, first, second, pressed, run }, index) => {
    const button = element.children[index].firstChild;
    [number, first, second].forEach((text, part) => (button.children[part].textContent = text));
    if (pressed === undefined) button.removeAttribute("aria-pressed");
    else button.setAttribute("aria-pressed", String(pressed));
    button.onclick = run;
  });
}
