// The list of what was added: a thumbnail, the name, and one line of how far it is or what went wrong.

import { counted } from "./dom.js";

export class List {
  // onSelect(item), onRemove(item).
  constructor(element, onSelect, onRemove) {
    [this.element, this.onSelect, this.onRemove] = [element, onSelect, onRemove];
    this.rows = new Map();
  }

  add(item) {
    const row = document.createElement("li");
    row.innerHTML = `
      <button type="button" class="item">
        <img class="picture" alt="" hidden /><span class="picture"></span>
        <span><span class="name"></span><span class="state"></span><progress max="1" hidden></progress></span>
      </button>
      <button type="button" class="remove"><span aria-hidden="true">×</span></button>`;
    row.querySelector(".name").textContent = item.name;
    row.querySelector(".item").addEventListener("click", () => this.onSelect(item));
    row.querySelector(".remove").setAttribute("aria-label", `Remove ${item.name}`);
    row.querySelector(".remove").addEventListener("click", () => this.onRemove(item));
    row.querySelector("progress").setAttribute("aria-label", `Progress of ${item.name}`);
    row.querySelector("span.picture").dataset.kind = item.kind;
    this.rows.set(item, row);
    this.element.append(row);
    this.update(item);
  }

  update(item) {
    const row = this.rows.get(item);
    if (!row) return;
    const state = row.querySelector(".state");
    state.textContent = line(item);
    state.classList.toggle("wrong", Boolean(item.error));
    const progress = row.querySelector("progress");
    progress.hidden = item.kind !== "video" || !["uploading", "working"].includes(item.state);
    if (item.progress === null) progress.removeAttribute("value");
    else progress.value = item.progress ?? 0;
    const [image, empty] = row.querySelectorAll(".picture");
    if (item.thumbnail && image.src !== item.thumbnail) image.src = item.thumbnail;
    image.hidden = !item.thumbnail;
    empty.hidden = Boolean(item.thumbnail);
  }

  select(item) {
    for (const [other, row] of this.rows) row.querySelector(".item").setAttribute("aria-current", String(other === item));
    this.rows.get(item)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  remove(item) {
    this.rows.get(item).remove();
    this.rows.delete(item);
  }
}

// One line about an item.
export function line(item) {
  if (item.error) return item.error;
  const percent = item.progress ? ` ${Math.floor(100 * item.progress)} %` : "";
  switch (item.state) {
    case "uploading":
      return `sending${percent}`;
    case "working":
      return item.kind === "video" ? `computing${percent}` : "computing";
    case "done":
      if (item.kind === "video") return "video, done";
      return counted(item.count ?? item.answer.polyps.length) + (item.correction ? ", corrected" : "");
    default:
      return item.state;
  }
}
