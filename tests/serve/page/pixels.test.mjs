// The page's arithmetic on masks, each against the plain definition, pixel by pixel. Run by tests/serve/page/test_units.py.

import assert from "node:assert/strict";
import test from "node:test";

import { grow, seedAt, shed } from "../../../src/polypseg/serve/page/grow.js";
import { placeLabels } from "../../../src/polypseg/serve/page/labels.js";
import * as pixels from "../../../src/polypseg/serve/page/pixels.js";
import * as runs from "../../../src/polypseg/serve/page/runs.js";
import { Surface } from "../../../src/polypseg/serve/page/surface.js";

// A small generator of numbers 0..1, the same each time (mulberry32).
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let value = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
}

const [WIDTH, HEIGHT] = [37, 29];
const noise = (seed, share = 0.5) => {
  const next = random(seed);
  return Uint8Array.from({ length: WIDTH * HEIGHT }, () => (next() < share ? 1 : 0));
};
const each = (run) => {
  for (let y = 0; y < HEIGHT; y++) for (let x = 0; x < WIDTH; x++) run(x, y, y * WIDTH + x);
};

// Which pixels are reached from a pixel, over such as `open` admits.
function reached(open, start, diagonal) {
  const seen = new Uint8Array(WIDTH * HEIGHT);
  const stack = [start];
  seen[start] = 1;
  while (stack.length) {
    const at = stack.pop();
    const [x, y] = [at % WIDTH, Math.floor(at / WIDTH)];
    for (let dy = -1; dy <= 1; dy++) {
      for (let dx = -1; dx <= 1; dx++) {
        const [nx, ny] = [x + dx, y + dy];
        if ((!diagonal && dx && dy) || nx < 0 || ny < 0 || nx >= WIDTH || ny >= HEIGHT) continue;
        if (open(ny * WIDTH + nx) && !seen[ny * WIDTH + nx]) {
          seen[ny * WIDTH + nx] = 1;
          stack.push(ny * WIDTH + nx);
        }
      }
    }
  }
  return seen;
}

for (const seed of [1, 2, 3]) {
  test(`runs lead back to the mask, and so do those of what is between (${seed})`, () => {
    const mask = noise(seed);
    const found = runs.runsOf(mask, WIDTH, HEIGHT);
    assert.deepEqual(runs.maskOf(found), mask);
    assert.deepEqual(runs.maskOf(runs.complement(found)), mask.map((value) => 1 - value));
  });

  for (const diagonal of [true, false]) {
    test(`regions are those that a flood reaches, ${diagonal ? "over corners too" : "over sides alone"} (${seed})`, () => {
      const mask = noise(seed, diagonal ? 0.35 : 0.55);
      const { regions } = runs.label(runs.runsOf(mask, WIDTH, HEIGHT), diagonal);
      const covered = new Uint8Array(mask.length);
      for (const region of regions) {
        const expected = reached((at) => mask[at], region.start, diagonal);
        const own = new Uint8Array(mask.length);
        assert.deepEqual(pixels.region(own, WIDTH, region, 1), region.box);
        assert.deepEqual(own, expected);
        assert.equal(region.area, expected.reduce((sum, value) => sum + value, 0));
        const xs = [];
        const ys = [];
        each((x, y, at) => {
          if (!expected[at]) return;
          xs.push(x);
          ys.push(y);
        });
        assert.deepEqual(region.box, [Math.min(...xs), Math.min(...ys), Math.max(...xs) + 1, Math.max(...ys) + 1]);
        own.forEach((value, at) => (covered[at] += value));
      }
      assert.deepEqual(covered, mask);
    });
  }

  test(`holes are the background that no way over sides leads out of (${seed})`, () => {
    const mask = noise(seed, 0.6);
    const expected = new Uint8Array(mask.length).fill(1);
    each((x, y, at) => {
      if ((x && y && x < WIDTH - 1 && y < HEIGHT - 1) || mask[at] || !expected[at]) return;
      reached((other) => !mask[other], at, false).forEach((value, other) => value && (expected[other] = 0));
    });
    const found = runs.runsOf(mask, WIDTH, HEIGHT);
    assert.deepEqual(runs.maskOf(runs.filled(found)), expected);
    each((x, y, at) => {
      const hole = runs.holeAt(found, [x + 0.5, y + 0.5]);
      assert.equal(Boolean(hole), !mask[at] && expected[at] === 1);
    });
  });

  test(`a stroke covers what is within the brush's radius of its way (${seed})`, () => {
    const next = random(10 + seed);
    for (let count = 0; count < 20; count++) {
      const place = () => [next() * 45 - 4, next() * 37 - 4];
      const [from, to, radius] = [place(), count % 5 ? place() : null, 0.4 + 6 * next()];
      const [x0, y0] = from;
      const [x1, y1] = to ?? from;
      const mask = new Uint8Array(WIDTH * HEIGHT);
      const [left, top, right, bottom] = pixels.stroke(mask, WIDTH, HEIGHT, from, to ?? from, radius, 1);
      each((x, y, at) => {
        const along = (x1 - x0) ** 2 + (y1 - y0) ** 2;
        const part = along ? ((x + 0.5 - x0) * (x1 - x0) + (y + 0.5 - y0) * (y1 - y0)) / along : 0;
        const near = Math.min(Math.max(part, 0), 1);
        const far = Math.hypot(x + 0.5 - x0 - near * (x1 - x0), y + 0.5 - y0 - near * (y1 - y0));
        if (Math.abs(far - radius) > 1e-9) assert.equal(mask[at] === 1, far < radius, `${x}, ${y}`);
        if (mask[at]) assert.ok(left <= x && x < right && top <= y && y < bottom);
      });
    }
  });

  test(`a polygon covers the pixels whose middles lie in it (${seed})`, () => {
    const next = random(20 + seed);
    const corners = Array.from({ length: 7 }, () => [next() * 45 - 4, next() * 37 - 4]);
    const mask = new Uint8Array(WIDTH * HEIGHT);
    pixels.polygon(mask, WIDTH, HEIGHT, corners, 1);
    each((x, y, at) => {
      // How often a ray to the right crosses an edge.
      const crossed = corners.filter(([x0, y0], index) => {
        const [x1, y1] = corners[(index + 1) % corners.length];
        if (y0 > y + 0.5 === y1 > y + 0.5) return false;
        return x0 + ((y + 0.5 - y0) / (y1 - y0)) * (x1 - x0) > x + 0.5;
      });
      assert.equal(mask[at], crossed.length % 2, `${x}, ${y}`);
    });
  });

  test(`smoothing lets most of what is around decide (${seed})`, () => {
    const mask = new Uint8Array(WIDTH * HEIGHT);
    pixels.stroke(mask, WIDTH, HEIGHT, [10, 12], [28, 15], 6, 1);
    noise(seed, 0.2).forEach((value, at) => value && (mask[at] ^= 1));
    const before = mask.slice();
    const radius = 2;
    const box = pixels.smooth(mask, WIDTH, HEIGHT, radius);
    assert.deepEqual(box, [0, 0, WIDTH, HEIGHT]); // noise lies everywhere
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    each((x, y, at) => {
      let sum = 0;
      for (let dy = -radius; dy <= radius; dy++) {
        for (let dx = -radius; dx <= radius; dx++) sum += before[inside(y + dy, HEIGHT - 1) * WIDTH + inside(x + dx, WIDTH - 1)];
      }
      assert.equal(mask[at], sum > 12 ? 1 : 0, `${x}, ${y}`);
    });
  });

  test(`a difference flips a mask there and back (${seed})`, () => {
    const [one, other] = [noise(seed), noise(seed + 50)];
    const mask = one.slice();
    const pairs = pixels.difference(one, other, WIDTH, [0, 0, WIDTH, HEIGHT]);
    pixels.flip(mask, pairs);
    assert.deepEqual(mask, other);
    pixels.flip(mask, pairs);
    assert.deepEqual(mask, one);
  });
}

// Two hills on a map of 12 × 10, the second one low.
function hills() {
  const map = { pixels: new Uint8Array(120), width: 12, height: 10 };
  const add = (column, row, top, width) => {
    for (let y = 0; y < 10; y++) {
      for (let x = 0; x < 12; x++) {
        const value = top * Math.exp(-((x - column) ** 2 + (y - row) ** 2) / width);
        map.pixels[y * 12 + x] = Math.max(map.pixels[y * 12 + x], Math.round(value));
      }
    }
  };
  add(3, 3, 240, 3);
  add(9, 6, 60, 2);
  return new Surface(map, 120, 100);
}

test("runs of a surface are where its rows reach the threshold", () => {
  const surface = hills();
  for (const threshold of [0.05, 0.3, 0.7]) {
    const mask = runs.maskOf(surface.runs(threshold));
    for (let y = 0; y < 100; y++) {
      const row = surface.row(y);
      for (let x = 0; x < 120; x++) assert.equal(mask[y * 120 + x] === 1, row[x] >= Math.fround(threshold));
    }
  }
});

test("a click grows the region around it, and nothing grows where the model sees nothing", () => {
  const surface = hills();
  const seed = seedAt(surface, [95, 65]);
  assert.ok(Math.abs(seed.level - 30 / 255) < 0.01);
  const found = grow(surface, seed.place, seed.level);
  const [left, top, right, bottom] = found.box;
  assert.ok(left > 75 && top > 45 && right < 115 && bottom < 85); // the low hill alone
  assert.ok(grow(surface, seed.place, seed.level / 3).area > found.area);
  assert.equal(seedAt(surface, [2, 98]), null);
});

test("labels lie in the frame and not over each other", () => {
  const boxes = [[0, 0, 40, 40], [10, 5, 60, 45], [12, 8, 30, 30], [150, 150, 200, 200], [155, 160, 199, 199]];
  const sizes = boxes.map(() => [50, 19]);
  const polyps = boxes.map((box) => ({ box, contour: [[box[0], box[1]], [box[0], box[3] - 1], [box[2] - 1, box[1]]] }));
  const placed = placeLabels(polyps, sizes, [0, 0, 200, 200]);
  placed.forEach(([left, top, right, bottom], index) => {
    assert.ok(left >= 0 && top >= 0 && right <= 200 && bottom <= 200);
    assert.equal(right - left, 50);
    for (const other of placed.slice(index + 1)) {
      assert.ok(left >= other[2] || other[0] >= right || top >= other[3] || other[1] >= bottom, `${placed}`);
    }
  });
});

test("a click takes away what is connected to it and no likelier", () => {
  const surface = hills();
  const whole = grow(surface, [35, 35], 0.05);
  const mask = new Uint8Array(120 * 100);
  pixels.region(mask, 120, whole, 1);
  const place = [50.5, 35.5];
  const gone = shed(surface, whole, place);
  const less = new Uint8Array(mask.length);
  pixels.region(less, 120, gone, 1);
  const most = Math.fround(surface.at(place));
  assert.equal(less[35 * 120 + 50], 1);
  assert.ok(gone.area < whole.area && gone.area > 10);
  for (let y = 0; y < 100; y++) {
    const row = surface.row(y).slice();
    for (let x = 0; x < 120; x++) if (less[y * 120 + x]) assert.ok(mask[y * 120 + x] && row[x] <= most);
  }
});
