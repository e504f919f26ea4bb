// A probability map at a frame's size, bilinear, row by row: nothing of the frame's size is kept. No document in here.

import { RunsBuilder } from "./runs.js";

export class Surface {
  // map: {pixels, width, height}; pixels are a Uint8Array (255 is 1) or a Float32Array (0..1).
  constructor(map, width, height) {
    Object.assign(this, { map, width, height, most: map.pixels instanceof Uint8Array ? 255 : 1 });
    this.across = samples(map.width, width);
    this.down = samples(map.height, height);
    this.narrow = new Float32Array(map.width);
    this.wide = new Float32Array(width);
  }

  // The row's values at the map's own columns; the same array each time.
  between(y) {
    const { map, down, narrow, most } = this;
    const [top, bottom, weight] = [down.low[y] * map.width, down.high[y] * map.width, down.weight[y]];
    for (let x = 0; x < map.width; x++) {
      narrow[x] = (map.pixels[top + x] * (1 - weight) + map.pixels[bottom + x] * weight) / most;
    }
    return narrow;
  }

  // Float32Array of the frame's width, of which only from to `to` - 1 is computed; the same array each time.
  row(y, from = 0, to = this.width) {
    const narrow = this.between(y);
    for (let x = from; x < to; x++) this.wide[x] = this.value(narrow, x);
    return this.wide;
  }

  // The sum of a row's values from a pixel to before another. Between two columns of the map they lie on a line.
  sum(narrow, from, to) {
    const { low, high, ends, sums } = this.across;
    let sum = 0;
    for (let x = from; x < to; ) {
      const end = Math.min(ends[x], to);
      const second = sums[end] - sums[x];
      sum += narrow[low[x]] * (end - x - second) + narrow[high[x]] * second;
      x = end;
    }
    return sum;
  }

  // The highest of them.
  highest(narrow, from, to) {
    let highest = 0;
    for (let x = from; x < to; ) {
      const end = Math.min(this.across.ends[x], to);
      highest = Math.max(highest, this.value(narrow, x), this.value(narrow, end - 1));
      x = end;
    }
    return Math.fround(highest);
  }

  value(narrow, x) {
    const { low, high, weight } = this.across;
    return narrow[low[x]] * (1 - weight[x]) + narrow[high[x]] * weight[x];
  }

  // Where the probability is at least the threshold, as runs. Between two columns of the map a value lies between theirs,
  // so that only the pixels of a region's edge are computed.
  runs(threshold) {
    const { across, width, height } = this;
    const least = Math.fround(threshold);
    const peaks = this.peaks();
    const runs = new RunsBuilder(width, height);
    for (let y = 0; y < height; y++) {
      if (peaks[this.down.low[y]] < least && peaks[this.down.high[y]] < least) continue;
      const narrow = this.between(y);
      for (let x = 0; x < width; ) {
        const end = across.ends[x];
        const sure = (narrow[across.low[x]] >= least) + (narrow[across.high[x]] >= least);
        if (sure === 2) runs.add(y, x, end);
        else if (sure) this.edge(runs, y, narrow, x, end, least);
        x = end;
      }
    }
    return runs.done();
  }

  edge(runs, y, narrow, from, to, least) {
    for (let x = from; x < to; x++) if (Math.fround(this.value(narrow, x)) >= least) runs.add(y, x, x + 1);
  }

  // The highest value of each of the map's rows.
  peaks() {
    const { pixels, width, height } = this.map;
    this.tops ??= Float32Array.from({ length: height }, (_, y) => {
      let highest = 0;
      for (let at = y * width; at < (y + 1) * width; at++) if (pixels[at] > highest) highest = pixels[at];
      return highest / this.most;
    });
    return this.tops;
  }

  // At a place [x, y] of the frame.
  at([x, y]) {
    const column = Math.min(Math.max(Math.floor(x), 0), this.width - 1);
    return this.value(this.between(Math.min(Math.max(Math.floor(y), 0), this.height - 1)), column);
  }
}

// For each of `to` pixels the two of `from` between whose centres its own lies, the weight of the second, the first pixel
// that lies between two others, and the weights' sums up to each.
function samples(from, to) {
  const low = new Int32Array(to);
  const high = new Int32Array(to);
  const weight = new Float32Array(to);
  for (let index = 0; index < to; index++) {
    const place = Math.min(Math.max(((index + 0.5) * from) / to - 0.5, 0), from - 1);
    low[index] = Math.floor(place);
    high[index] = Math.min(low[index] + 1, from - 1);
    weight[index] = place - low[index];
  }
  const ends = new Int32Array(to).fill(to);
  for (let index = to - 2; index >= 0; index--) ends[index] = low[index] === low[index + 1] ? ends[index + 1] : index + 1;
  const sums = new Float64Array(to + 1);
  for (let index = 0; index < to; index++) sums[index + 1] = sums[index] + weight[index];
  return { low, high, weight, ends, sums };
}
