// What the keys do.

import { correction, edit } from "./correcting.js";
import { $ } from "./dom.js";
import { listen } from "./keys.js";
import { redoLabels, relabelling, undoLabels } from "./label-form.js";
import { setMode, toggleOverlay } from "./modes.js";
import { review, reviewing } from "./review.js";
import { go, player, viewer } from "./stage.js";
import { smooth } from "./tools.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const looking = () => !correction.active && !$("picture").hidden;
const watching = () => !$("film").hidden;
const correcting = () => correction.active;
const resting = () => !correction.active;
const onCanvas = () => correcting() && document.activeElement === $("canvas");
const outlining = () => correcting() && correction.editor.tool.corners?.length > 0;
const anything = () => looking() || correcting();
const brushStep = (event) => (event.shiftKey ? 1 : Math.max(1, correction.editor.size / 3));
const editor = () => correction.editor;
const changing = () => correcting() || relabelling();
const undo = () => (correcting() ? editor().undo() : undoLabels());
const redo = () => (correcting() ? editor().redo() : redoLabels());

const key = (keys, shown, what, when, run) => ({ keys: keys.split(" "), shown, what, when, run });
const tool = (letter, name, what) => key(letter, letter, `in a correction: ${what}`, correcting, () => correction.choose(name));
const state = (letter, name, what) => key(letter, letter, `reviewing: ${what}`, reviewing, () => review(name));

listen(
  [
    key(Object.keys(STEPS).join(" "), "← → ↑ ↓", "in a correction: move the brush (with Shift by one pixel)", onCanvas, (event) =>
      editor().step(...STEPS[event.key].map((way) => way * brushStep(event)))),
    { keys: [" "], shown: "Space", what: "in a correction: draw, click or set a corner at the brush", when: onCanvas, run: () => editor().dab() },
    key("Enter", "Enter", "in a correction: close the polygon", outlining, () => editor().tool.finish()),
    key("Backspace", "Backspace", "in a correction: the polygon's last corner away", outlining, () => editor().tool.back?.()),
    key("ArrowRight n", "→ n", "next frame or video", resting, () => go(1)),
    key("ArrowLeft p", "← p", "previous frame or video", resting, () => go(-1)),
    key("1 2 3 4 5 6 7 8 9", "1 … 9", "zoom to this polyp; in a video, jump to its largest view", () => true, (event) =>
      $("polyps").children[Number(event.key) - 1]?.firstChild.click()),
    key("0", "0", "whole frame", anything, () => viewer.fit()),
    key("+ =", "+", "zoom in", anything, () => viewer.zoomBy(1.4)),
    key("-", "−", "zoom out", anything, () => viewer.zoomBy(1 / 1.4)),
    key("c", "c", "contour", anything, () => setMode("contour")),
    key("f", "f", "fill", anything, () => setMode("fill")),
    key("h", "h", "heat map", anything, () => setMode("heat")),
    key("o", "o", "polyps off and on", anything, toggleOverlay),
    { keys: [" "], shown: "Space", what: "in a video: play and pause", when: watching, run: () => player.toggle() },
    key(",", ",", "in a video: one frame back", watching, () => player.step(-1)),
    key(".", ".", "in a video: one frame on", watching, () => player.step(1)),
    key("]", "]", "in a video: to the next polyp", watching, () => player.leap(1)),
    key("[", "[", "in a video: to the polyp before", watching, () => player.leap(-1)),
    key("e", "e", "correct the mask; of a video, the frame that is shown", () => resting(), () => (watching() ? $("film-correct").click() : edit())),
    state("a", "accepted", "accept and next"),
    state("m", "no_polyp", "no polyp, and next"),
    state("y", "poor_view", "poor view, and next"),
    state("u", "unsure", "unsure, and next"),
    tool("b", "brush", "brush"),
    tool("r", "eraser", "eraser"),
    tool("g", "polygon", "polygon"),
    tool("l", "lasso", "lasso"),
    tool("k", "grow", "click to segment"),
    tool("x", "prompt", "box to segment"),
    tool("i", "hole", "close a hole"),
    tool("d", "remove", "delete a region"),
    tool("v", "move", "move the picture"),
    key("s", "s", "in a correction: smooth", correcting, () => smooth(editor())),
    key("[", "[", "in a correction: smaller", correcting, () => correction.resize(editor().size / 1.2)),
    key("]", "]", "in a correction: larger", correcting, () => correction.resize(editor().size * 1.2 + 1)),
    key("Ctrl+z", "Ctrl+z", "undo, also of labels", changing, (event) => (event.shiftKey ? redo() : undo())),
    key("Ctrl+y", "Ctrl+y", "redo", changing, () => redo()),
    key("Ctrl+s", "Ctrl+s", "save the correction", correcting, () => correction.save()),
    key("Ctrl+Enter", "Ctrl+Enter", "save the correction, and next", correcting, () => correction.save(true)),
    key("Escape", "Esc", "drop the polygon", outlining, () => editor().cancel()),
    key("Escape", "Esc", "leave the correction", correcting, () => correction.leave()),
    key("?", "?", "this help", () => true, () => $("help").showModal()),
  ],
  $("keys"),
  $("keys-on"),
);
