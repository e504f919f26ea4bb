// The class and the attributes of the polyp that is chosen, by what the service's file of labels offers. While a mask is
// corrected they are edits of it; else they wait for "Save labels", and can be undone until then.

import { renamed } from "./classes.js";
import { correction } from "./correcting.js";
import { $, on } from "./dom.js";
import { labelsOf, saveReview, told } from "./saving.js";
import { refresh, viewer } from "./stage.js";
import { state, when } from "./state.js";

const isUsed = () => state.labels.classes.length > 1 || state.labels.attributes.length > 0;

// The polyp that is chosen, where it may be labelled.
function chosen() {
  const { current, scene, project } = state;
  if (!isUsed() || !scene || current.kind !== "image") return null;
  if (correction.active) return correction.editor.polyps[correction.editor.chosen] ?? null;
  return project || current.frame ? (scene.polyps[viewer.selected] ?? null) : null;
}

function field(name, title, values) {
  const label = Object.assign(document.createElement("label"), { className: "stacked", textContent: title });
  const control = document.createElement(values.length ? "select" : "input");
  control.name = name;
  for (const one of values) control.append(new Option(one || "–", one));
  label.append(control);
  return label;
}

function build() {
  const { classes, attributes } = state.labels;
  const fields = attributes.map(({ name, title, values }) => field(`attribute:${name}`, title ?? name, values.length ? ["", ...values] : []));
  const save = Object.assign(document.createElement("button"), { textContent: "Save labels" });
  const undo = Object.assign(document.createElement("button"), { type: "button", textContent: "Undo", title: "Undo (Ctrl+z)" });
  undo.addEventListener("click", undoLabels);
  const buttons = Object.assign(document.createElement("div"), { className: "add" });
  buttons.append(save, undo);
  $("label-form").replaceChildren(field("class", "Class", classes.map(({ name }) => name)), ...fields, buttons);
}

function fill() {
  const form = $("label-form");
  const polyp = chosen();
  form.hidden = !polyp;
  if (!polyp) return;
  if (!form.children.length) build();
  const entry = polyp.entry ?? { class: state.labels.classes[0].name, attributes: {} };
  for (const control of form.querySelectorAll("select, input")) {
    if (control === document.activeElement && control.matches("input")) continue; // it is being written into
    control.value = control.name === "class" ? entry.class : (entry.attributes?.[control.name.slice(10)] ?? "");
  }
  const isChanged = !correction.active && Boolean(state.current.labels);
  form.querySelector(".add").hidden = !isChanged;
}

function change() {
  const data = new FormData($("label-form"));
  const attributes = {};
  for (const [name, value] of data) if (name.startsWith("attribute:") && value) attributes[name.slice(10)] = value;
  const said = { class: data.get("class"), attributes };
  if (correction.active) return correction.editor.call(said);
  const item = state.current;
  item.relabelled ??= { past: [], future: [] };
  item.relabelled.past.push(item.labels);
  item.relabelled.future = [];
  item.labels = renamed(state.scene.polyps, labelsOf(item), viewer.selected, said);
  refresh(true);
}

// Whether there are changes that were not saved.
export const relabelling = () => !correction.active && Boolean(state.scene && state.current.relabelled);

function replay(from, to) {
  const item = state.current;
  if (!from.length) return;
  to.push(item.labels);
  item.labels = from.pop();
  refresh(true);
}

export function undoLabels() {
  const { past, future } = state.current.relabelled;
  replay(past, future);
}

export function redoLabels() {
  const { past, future } = state.current.relabelled;
  replay(future, past);
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
