// What the page writes and computes for files and labels. Run by tests/serve/page/test_units.py.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";

import { covers, entriesOf, matched, wordsOf } from "../../../src/polypseg/serve/page/classes.js";
import { clock, counted } from "../../../src/polypseg/serve/page/dom.js";
import { differ, filmWords } from "../../../src/polypseg/serve/page/followed.js";
import { movePoint, pointOf, state } from "../../../src/polypseg/serve/page/state.js";
import { zipOf } from "../../../src/polypseg/serve/page/zip.js";

test("a ZIP file is read by others", async () => {
  const files = [
    { path: "set/images/é 1.txt", file: new Blob(["one"]) },
    { path: "set/masks/two.bin", file: new Blob([Uint8Array.from({ length: 70_000 }, (_, at) => at % 251)]) },
  ];
  const path = join(mkdtempSync(join(tmpdir(), "page-")), "set.zip");
  writeFileSync(path, new Uint8Array(await (await zipOf(files)).arrayBuffer()));
  const script = "import json, sys, zipfile; a = zipfile.ZipFile(sys.argv[1]); a.testzip() and sys.exit(1); print(json.dumps({n: len(a.read(n)) for n in a.namelist()}))";
  const found = JSON.parse(execFileSync(process.env.PYTHON ?? "python3", ["-c", script, path], { encoding: "utf8" }));
  assert.deepEqual(found, { "set/images/é 1.txt": 3, "set/masks/two.bin": 70_000 });
});

const square = (left, top, side, more = []) => ({
  box: [left, top, left + side, top + side],
  rings: [[[left, top], [left + side, top], [left + side, top + side], [left, top + side]], ...more],
  contour: [[left, top]],
});

test("a polyp covers its pixels and not its hole's", () => {
  const polyp = square(10, 10, 20, [[[15, 15], [15, 20], [20, 20], [20, 15]]]);
  for (const [place, expected] of [[[10, 10], true], [[29, 29], true], [[30, 29], false], [[15, 15], false], [[19, 19], false], [[20, 20], true], [[9, 12], false]]) {
    assert.equal(covers(polyp, place), expected, String(place));
  }
});

test("labels stay with their polyps when these are redrawn", () => {
  const entry = (at, box, name) => ({ at, box, class: name, attributes: {} });
  const before = [entry([12, 12], [10, 10, 30, 30], "adenoma"), entry([60, 60], [50, 50, 80, 80], "polyp")];
  const polyps = [square(55, 65, 20), square(10, 10, 20), square(200, 200, 5)];
  assert.deepEqual(matched(polyps, before).map((one) => one?.class ?? null), ["polyp", "adenoma", null]);
  assert.deepEqual(entriesOf(polyps, before).map(({ at }) => at), [[55, 65], [10, 10]]);
});

test("labels are told in a few words", () => {
  const classes = [{ name: "polyp" }, { name: "adenoma" }];
  assert.equal(wordsOf(null, classes), "");
  assert.equal(wordsOf({ class: "polyp", attributes: {} }, classes), "");
  assert.equal(wordsOf({ class: "adenoma", attributes: { paris: "Is", remark: "" } }, classes), "adenoma, Is");
});

test("times are told in tenths", () => {
  assert.deepEqual([0, 0.3, 59.96, 61.25, 3723.4].map(clock), ["0:00.0", "0:00.3", "0:59.9", "1:01.2", "1:02:03.4"]);
  assert.deepEqual([0, 1, 2].map((count) => counted(count)), ["no polyp", "1 polyp", "2 polyps"]);
});

test("a video says where it was followed, where that is not the model's own", () => {
  const own = { threshold: 0.5, min_confidence: 0.669, min_area: 0 };
  const other = (change) => ({ ...own, ...change });
  assert.deepEqual(
    [{ min_area: 0.1 }, { threshold: 0.4 }, { min_confidence: 0.5 }, { threshold: 0.4, min_confidence: 0 }].map((change) => [
      differ(other(change), own), filmWords(other(change), own),
    ]),
    [
      [false, "video, done"],
      [true, "followed at 0.40"],
      [true, "followed at 0.50, 0.500"],
      [true, "followed at 0.40, 0.000"],
    ],
  );
  assert.equal(filmWords(own, undefined), "video, done"); // the model is not known yet
});

test("a video and the frames taken from it have an operating point of their own", () => {
  const video = { kind: "video", job: { operating_point: { threshold: 0.4, min_confidence: 0.2 } } };
  const [frame, still] = [{ kind: "image", film: { item: video } }, { kind: "image" }];
  state.point = { threshold: 0.5, min_confidence: 0.6 };
  const told = () => [video, frame, still, null].map((item) => pointOf(item).threshold);
  assert.deepEqual(told(), [0.4, 0.4, 0.5, 0.5]);
  movePoint(frame, { threshold: 0.3 });
  assert.deepEqual(told(), [0.3, 0.3, 0.5, 0.5]);
  movePoint(still, { threshold: 0.7 });
  assert.deepEqual(told(), [0.3, 0.3, 0.7, 0.7]);
  assert.deepEqual([pointOf(video).min_confidence, video.job.operating_point.threshold], [0.2, 0.4]);
  assert.equal(pointOf({ kind: "video", job: null }).threshold, 0.7); // not followed yet
});
