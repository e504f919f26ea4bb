// The class and the attributes of the polyp that is chosen, by what the service's file of labels offers.

import { correction } from "./correcting.js";
import { $, on } from "./dom.js";
import { saveReview, told } from "./saving.js";
import { refresh, viewer } from "./stage.js";
import { state, when } from "./state.js";

const isUsed = () => state.labels.classes.length > 1 || state.labels.attributes.length > 0;
const isOpen = () => isUsed() && Boolean(state.scene) && state.current.kind === "image" && Boolean(state.project || state.current.frame) && !correction.active;

function field(name, title, values, value) {
  const label = Object.assign(document.createElement("label"), { className: "stacked", textContent: title });
  const control = document.createElement(values.length ? "select" : "input");
  control.name = name;
  for (const one of values) control.append(new Option(one || "–", one));
  control.value = value;
  label.append(control);
  return label;
}

function fill() {
  const form = $("label-form");
  const polyp = isOpen() ? state.scene.polyps[viewer.selected] : null;
  form.hidden = !polyp;
  if (!polyp || form.contains(document.activeElement)) return;
  const { classes, attributes } = state.labels;
  const entry = polyp.entry ?? { class: classes[0].name, attributes: {} };
  const fields = [field("class", "Class", classes.map(({ name }) => name), entry.class)];
  for (const { name, title, values } of attributes) {
    fields.push(field(`attribute:${name}`, title ?? name, values.length ? ["", ...values] : [], entry.attributes?.[name] ?? ""));
  }
  const save = Object.assign(document.createElement("button"), { textContent: "Save labels", hidden: !state.current.labels });
  form.replaceChildren(...fields, save);
}

function change() {
  const polyp = state.scene.polyps[viewer.selected];
  const data = new FormData($("label-form"));
  const attributes = {};
  for (const [name, value] of data) if (name.startsWith("attribute:") && value) attributes[name.slice(10)] = value;
  const item = state.current;
  polyp.entry = { at: polyp.contour[0], box: polyp.box, class: data.get("class"), attributes };
  item.labels = state.scene.polyps.filter(({ entry }) => entry).map(({ entry, box }) => ({ ...entry, box }));
  refresh(true);
  $("label-form").querySelector("button").hidden = false;
}

on("label-form", "change", change);
on("label-form", "submit", async (event) => {
  event.preventDefault();
  const { current: item, scene } = state;
  const known = item.frame?.version > 0 && item.frame.state !== "predicted" ? item.frame.state : "accepted";
  if (!(await told(() => saveReview(item, known, scene)))) return;
  document.activeElement.blur();
  refresh(true);
});
when("scene", fill);

