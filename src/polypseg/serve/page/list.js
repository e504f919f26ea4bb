// The list of what there is: a thumbnail, the name, and one line of how far it is or what went wrong. Only the rows that
// are seen exist, so that thousands stay quick. One stop for Tab: arrows, Home and End go through it, Delete removes.

import { counted } from "./dom.js";
import { filmWords } from "./followed.js";
import { state } from "./state.js";

const BEYOND = 4; // rows before and after those that are seen

export class List {
  // onSelect(item), onRemove(item).
  constructor(element, onSelect, onRemove) {
    [this.element, this.onSelect, this.onRemove] = [element, onSelect, onRemove];
    this.items = [];
    this.current = null;
    this.focused = 0; // index of the row that Tab reaches
    this.rows = new Map(); // item → row, of those that exist
    this.extent = 0; // of a row with its gap, CSS pixels
    element.addEventListener("scroll", () => this.lay());
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("focusin", (event) => {
      const row = event.target.closest("li");
      if (row) this.reach(this.items.indexOf(row.item));
    });
    new ResizeObserver(() => {
      this.extent = 0;
      this.lay();
    }).observe(element);
  }

  // items: the array itself, which the page goes on to change; `set` says that it did.
  set(items) {
    this.items = items;
    this.later();
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.lay();
    });
  }

  get lies() {
    return getComputedStyle(this.element).flexDirection === "row";
  }

  lay() {
    const { element, items } = this;
    if (this.waiting) cancelAnimationFrame(this.waiting);
    this.waiting = null;
    this.focused = Math.min(this.focused, Math.max(items.length - 1, 0));
    this.extent ||= this.measure();
    const [scroll, seen] = this.lies ? [element.scrollLeft, element.clientWidth] : [element.scrollTop, element.clientHeight];
    const first = Math.max(0, Math.min(Math.floor(scroll / this.extent) - BEYOND, items.length - 1));
    const last = Math.min(items.length, Math.ceil((scroll + seen) / this.extent) + BEYOND);
    const shown = new Set(items.slice(first, last));
    const held = document.activeElement?.closest?.("li")?.item; // the focus is not taken away by scrolling
    for (const [item, row] of this.rows) {
      if (shown.has(item) || (item === held && items.includes(item))) continue;
      row.remove();
      this.rows.delete(item);
    }
    for (let index = first; index < last; index++) this.place(items[index], index);
    if (held && !shown.has(held) && this.rows.has(held)) this.place(held, items.indexOf(held));
    element.style.setProperty("--whole", `${items.length * this.extent}px`);
  }

  measure() {
    const style = getComputedStyle(this.element);
    return parseFloat(style.getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  place(item, index) {
    let row = this.rows.get(item);
    if (!row) {
      row = this.make(item);
      this.rows.set(item, row);
      this.fill(item);
    }
    if (row.index !== index) {
      row.index = index;
      const after = [...this.element.children].find((other) => other.index > index && other !== row);
      if (row.nextSibling !== (after ?? null) || row.parentNode !== this.element) this.element.insertBefore(row, after ?? null);
    }
    row.style.setProperty("--at", `${index * this.extent}px`);
    row.setAttribute("aria-posinset", index + 1);
    row.setAttribute("aria-setsize", this.items.length);
    row.querySelector(".item").tabIndex = index === this.focused ? 0 : -1;
    row.querySelector(".item").setAttribute("aria-current", String(item === this.current));
  }

  make(item) {
    const row = document.createElement("li");
    row.item = item;
    row.innerHTML = `
      <button type="button" class="item" tabindex="-1" aria-keyshortcuts="Delete">
        <img class="picture" alt="" loading="lazy" hidden /><span class="picture"></span>
        <span><span class="name"></span><span class="state"></span><progress max="1" hidden></progress></span>
      </button>
      <button type="button" class="remove" tabindex="-1"><span aria-hidden="true">×</span></button>`;
    row.querySelector(".name").textContent = item.name;
    row.querySelector(".item").addEventListener("click", () => this.onSelect(item));
    row.querySelector(".remove").setAttribute("aria-label", `Remove ${item.name}`);
    row.querySelector(".remove").addEventListener("click", () => this.onRemove(item));
    row.querySelector("progress").setAttribute("aria-label", `Progress of ${item.name}`);
    row.querySelector("span.picture").dataset.kind = item.kind;
    return row;
  }

  shows(item) {
    return this.rows.has(item);
  }

  // What the row says; nothing where it is not seen.
  update(item) {
    if (this.rows.has(item)) this.fill(item);
  }

  fill(item) {
    const row = this.rows.get(item);
    const text = row.querySelector(".state");
    text.textContent = line(item);
    text.title = text.textContent; // all of it
    text.classList.toggle("wrong", Boolean(item.error));
    const progress = row.querySelector("progress");
    progress.hidden = item.kind !== "video" || !["uploading", "working"].includes(item.state);
    if (item.progress === null) progress.removeAttribute("value");
    else progress.value = item.progress ?? 0;
    const [image, empty] = row.querySelectorAll(".picture");
    if (item.thumbnail && image.getAttribute("src") !== item.thumbnail) image.src = item.thumbnail;
    image.hidden = !item.thumbnail;
    empty.hidden = Boolean(item.thumbnail);
  }

  select(item) {
    this.current = item;
    const at = this.items.indexOf(item);
    if (at >= 0) {
      this.focused = at;
      this.show(at);
    }
    this.lay();
  }

  // Scrolls no further than needed.
  show(index) {
    const { element, lies } = this;
    this.extent ||= this.measure();
    const [name, seen] = lies ? ["scrollLeft", element.clientWidth] : ["scrollTop", element.clientHeight];
    const [from, to] = [index * this.extent, (index + 1) * this.extent];
    element.style.setProperty("--whole", `${this.items.length * this.extent}px`);
    if (from < element[name]) element[name] = from;
    else if (to > element[name] + seen) element[name] = to - seen;
  }

  reach(index) {
    if (index < 0 || index === this.focused) return;
    this.focused = index;
    for (const [item, row] of this.rows) row.querySelector(".item").tabIndex = this.items[index] === item ? 0 : -1;
  }

  focus(index) {
    if (!this.items.length) return false;
    this.focused = Math.min(Math.max(index, 0), this.items.length - 1);
    this.show(this.focused);
    this.lay();
    this.rows.get(this.items[this.focused]).querySelector(".item").focus();
    return true;
  }

  key(event) {
    const at = this.focused;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.items.length - 1, PageDown: at + 8, PageUp: at - 8 }[event.key];
    if (to !== undefined) {
      if (this.focus(to)) this.onSelect(this.items[this.focused]);
    } else if (event.key === "Delete") this.onRemove(this.items[at]);
    else return;
    event.preventDefault();
  }
}

const REVIEWED = { accepted: "accepted", corrected: "corrected", no_polyp: "no polyp, checked", poor_view: "poor view", unsure: "unsure" };

// One line about an item.
export function line(item) {
  if (item.error) return item.error;
  if (item.former) return `anew: ${share(item) || step(item)}`;
  return step(item);
}

const share = ({ progress }) => (progress ? `${Math.floor(100 * progress)}\u00a0%` : "");

// How far it is.
export function step(item) {
  const percent = item.progress ? ` ${share(item)}` : "";
  switch (item.state) {
    case "uploading":
      return `sending${percent}`;
    case "working":
      return item.kind === "video" ? `computing${percent}` : "computing";
    case "done":
    case "remote":
      if (item.kind === "video") return filmWords(item.job.operating_point, state.model?.operating_point);
      return frameLine(item);
    default:
      return item.state;
  }
}

function frameLine(item) {
  const state = item.frame?.state ?? "predicted";
  if (state === "no_polyp" || state === "poor_view") return REVIEWED[state];
  if (item.proposed) return `proposed, ${Math.round(100 * item.proposed.sureness)} % sure`;
  if (item.count === undefined && item.frame?.version === 0 && item.frame.confidence === null) return "not computed yet";
  const count = item.count ?? item.frame?.polyps?.length ?? item.answer?.polyps.length;
  if (count === undefined) return "waits for its prediction";
  const unclear = item.answer?.quality && !item.answer.quality.judgeable && state === "predicted";
  return unclear ? "cannot be judged" : counted(count) + (REVIEWED[state] ? `, ${REVIEWED[state]}` : "");
}
