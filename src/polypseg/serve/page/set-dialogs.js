// The dialogs about sets: which there are; what one imports and exports, and the fine-tuning on it.

import { pause } from "./api.js";
import { $, counted, on } from "./dom.js";
import { save } from "./download.js";
import { chosen } from "./intake.js";
import { openSet, reload } from "./project.js";
import { STATES } from "./review.js";
import * as sets from "./sets.js";
import { state } from "./state.js";

const tellIn = (id) => (text, wrong = false) => {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", wrong);
};
const tellSets = tellIn("sets-notice");
const tellTraining = tellIn("train-text");

const attempt = async (tell, run) => {
  try {
    tell("");
    return await run();
  } catch (error) {
    return tell(error.message, true);
  }
};

// --- which there are ---

function button(text, run) {
  const element = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  element.addEventListener("click", run);
  return element;
}

function row(project) {
  const element = document.createElement("li");
  const text = document.createElement("span");
  text.textContent = project.name;
  const facts = document.createElement("span");
  facts.className = "quiet";
  const reviewed = project.total - (project.counts.predicted ?? 0);
  facts.textContent = project.deleted ? "removed" : `${reviewed} of ${counted(project.total, "frame")} reviewed`;
  element.append(text, facts);
  if (project.deleted) {
    element.append(button("Restore", () => attempt(tellSets, async () => fillSets(await sets.restoreProject(project.id)))));
    return element;
  }
  const open = button("Open", () => {
    $("sets").close();
    openSet(project);
  });
  open.setAttribute("aria-label", `Open ${project.name}`);
  element.append(open);
  if (project.id !== sets.OWN) {
    const remove = button("Remove", () =>
      confirm(`Remove the set ${project.name}? It can be restored here.`) &&
      attempt(tellSets, async () => fillSets(await sets.removeProject(project.id))),
    );
    remove.setAttribute("aria-label", `Remove ${project.name}`);
    element.append(remove);
  }
  return element;
}

async function fillSets() {
  const [there, deleted] = [await sets.projects(), await sets.deletedProjects()];
  const gone = deleted.filter(({ id, deleted: time }) => time && !there.some((one) => one.id === id));
  $("sets-list").replaceChildren(...[...there, ...gone].map(row));
}

on("sets-button", "click", () => {
  $("sets").showModal();
  attempt(tellSets, fillSets);
});
on("sets-new", "submit", (event) => {
  event.preventDefault();
  attempt(tellSets, async () => {
    const project = await sets.createProject($("sets-name").value);
    $("sets-name").value = "";
    $("sets").close();
    await openSet(project);
    openSetDialog();
  });
});
on("corrections-open", "click", () => attempt(tellSets, async () => openSet((await sets.projects()).find(({ id }) => id === sets.OWN))));

// --- one set ---

async function openSetDialog() {
  const { project } = state;
  $("set-title").textContent = project.name;
  $("import-status").hidden = true;
  $("set").showModal();
  await attempt(tellIn("set-counts"), tellCounts);
  attempt(tellTraining, followTraining);
}
on("set-more", "click", openSetDialog);

async function tellCounts() {
  const { counts, total, waiting } = (await sets.projects()).find(({ id }) => id === state.project.id);
  const parts = Object.entries(counts).filter(([, count]) => count).map(([name, count]) => `${count} ${STATES[name].toLowerCase()}`);
  $("set-counts").textContent = `${counted(total, "frame")}${parts.length ? `: ${parts.join(", ")}` : ""}${waiting ? `; ${waiting} wait for their prediction` : ""}`;
}

async function bringIn(found) {
  const tell = tellIn("import-text");
  $("import-status").hidden = false;
  $("import-problems").replaceChildren();
  $("import-bar").removeAttribute("value");
  const { id } = state.project;
  await attempt(tell, async () => {
    tell(`Sending ${counted(found.length, "file")}…`);
    let work = await sets.importInto(id, found, $("import-state").value);
    while (["waiting", "running"].includes(work.state)) {
      $("import-bar").value = work.total ? work.done / work.total : 0;
      tell(`${work.done} of ${work.total} frames`);
      await pause(0.5);
      work = await sets.importState(id, work.id);
    }
    $("import-bar").value = 1;
    const parts = [`${counted(work.added, "frame")} added`, ...(work.known ? [`${work.known} known already`] : [])];
    if (work.problem_count) parts.push(`${counted(work.problem_count, "problem")}:`);
    tell(work.error ?? parts.join(", "), Boolean(work.error));
    $("import-problems").replaceChildren(...work.problems.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
    await tellCounts();
    await reload();
  });
}
// Into the set that is open.
export async function importDropped(found) {
  await openSetDialog();
  await bringIn(found);
}

for (const id of ["import-folder", "import-files"]) {
  on(id, "change", (event) => {
    const found = chosen(event.target);
    event.target.value = "";
    bringIn(found);
  });
}

for (const element of document.querySelectorAll("#set [data-format]")) {
  element.addEventListener("click", () =>
    attempt(tellIn("set-counts"), async () => {
      save(await sets.exportOf(state.project.id, element.dataset.format), `${state.project.id}-${element.dataset.format}.zip`);
      await tellCounts();
    }),
  );
}

// --- fine-tuning ---

on("train", "click", () =>
  attempt(tellTraining, async () => {
    await sets.train(state.project.id, Number($("train-epochs").value));
    await followTraining();
  }),
);
on("train-stop", "click", () => attempt(tellTraining, () => sets.stopTraining()));

async function followTraining() {
  for (;;) {
    const training = await sets.training();
    fillTraining(training);
    if (training.state !== "running" || !$("set").open) return;
    await pause(1);
  }
}

function fillTraining(training) {
  const runs = training.state === "running";
  $("train").disabled = runs;
  $("train-stop").hidden = !runs;
  const lines = {
    none: "",
    running: `Epoch ${training.epoch ?? 0} of ${training.epochs}, on ${counted(training.frames ?? 0, "frame")} of ${training.project}`,
    done: `Done on ${training.project}. Use it: polypseg serve --model ${training.bundle} (below the state folder)`,
    failed: `Failed: ${training.error}`,
    cancelled: `Stopped after ${counted(training.epoch ?? 0, "epoch")}`,
  };
  tellTraining(lines[training.state] ?? training.state, training.state === "failed");
  const curve = training.curve ?? [];
  $("train-curve").hidden = !curve.length;
  if (curve.length) $("train-curve").replaceChildren(chart(curve, training.epochs, training.dice_before));
}

const SVG = "http://www.w3.org/2000/svg";
const shape = (name, attributes, text = "") => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
};

// Dice on validation by epoch, 0..1.
function chart(curve, epochs, before) {
  const [width, height, left, bottom] = [420, 150, 34, 22];
  const x = (epoch) => left + ((width - left - 8) * (epoch - 1)) / Math.max(epochs - 1, 1);
  const y = (value) => 8 + (height - bottom - 8) * (1 - value);
  const known = curve.filter(({ dice }) => dice !== null);
  const last = known.at(-1)?.dice;
  const label = `Dice on validation by epoch${last === undefined ? "" : `, ${last.toFixed(3)} after epoch ${known.at(-1).epoch}`}`;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of [0, 0.5, 1]) {
    svg.append(shape("line", { x1: left, x2: width - 8, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
  }
  svg.append(shape("text", { x: left, y: height - 4 }, "Dice on validation, by epoch"));
  svg.append(shape("text", { x: width - 8, y: height - 4, "text-anchor": "end" }, String(epochs)));
  if (before !== null && before !== undefined) svg.append(shape("line", { x1: left, x2: width - 8, y1: y(before), y2: y(before), class: "before" }));
  svg.append(shape("polyline", { points: known.map(({ epoch, dice }) => `${x(epoch)},${y(dice)}`).join(" "), class: "curve" }));
  for (const { epoch, dice } of known) svg.append(shape("circle", { cx: x(epoch), cy: y(dice), r: 3, class: "dot" }));
  return svg;
}
