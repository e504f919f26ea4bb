// Masks as runs along the rows: quick where a mask of millions of pixels is a few thousand runs. No document in here.
//
// Runs are {width, height, rows, from, to}: those of row y have the numbers rows[y] to rows[y + 1] - 1, in order, and each
// covers the pixels from[run] to to[run] - 1.

export class RunsBuilder {
  constructor(width, height) {
    Object.assign(this, { width, height, rows: new Int32Array(height + 1), from: [], to: [], y: 0 });
  }

  // Rows in order; runs that touch become one.
  add(y, from, to) {
    this.goTo(y);
    const last = this.to.length - 1;
    if (last >= this.rows[y] && this.to[last] === from) this.to[last] = to;
    else {
      this.from.push(from);
      this.to.push(to);
    }
  }

  goTo(y) {
    while (this.y < y) this.rows[++this.y] = this.from.length;
  }

  done() {
    this.goTo(this.height);
    const { width, height, rows, from, to } = this;
    return { width, height, rows, from, to };
  }
}

// mask: Uint8Array of 0 and 1.
export function runsOf(mask, width, height) {
  const runs = new RunsBuilder(width, height);
  for (let at = mask.indexOf(1); at >= 0; ) {
    const y = Math.floor(at / width);
    const end = (y + 1) * width;
    let stop = mask.indexOf(0, at);
    if (stop < 0 || stop > end) stop = end;
    runs.add(y, at - y * width, stop - y * width);
    at = mask.indexOf(1, stop);
  }
  return runs.done();
}

// Uint8Array of 0 and 1. kept: which runs, all by default.
export function maskOf(runs, kept = null) {
  const { width, height, rows, from, to } = runs;
  const mask = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let run = rows[y]; run < rows[y + 1]; run++) {
      if (!kept || kept[run]) mask.fill(1, y * width + from[run], y * width + to[run]);
    }
  }
  return mask;
}

// What is between the runs.
export function complement({ width, height, rows, from, to }) {
  const runs = new RunsBuilder(width, height);
  for (let y = 0; y < height; y++) {
    let at = 0;
    for (let run = rows[y]; run < rows[y + 1]; run++) {
      if (from[run] > at) runs.add(y, at, from[run]);
      at = to[run];
    }
    if (at < width) runs.add(y, at, width);
  }
  return runs.done();
}

// The connected regions: {labels: Int32Array, the number of each run's region; regions: [{area, box, start, runs}]} in the
// order of their first pixels (start, an index into the mask). diagonal: whether pixels that share a corner touch.
export function label(runs, diagonal = true) {
  const { width, height, rows, from, to } = runs;
  const parents = Int32Array.from(from, (_, run) => run);
  const root = (run) => {
    while (parents[run] !== run) run = parents[run] = parents[parents[run]];
    return run;
  };
  const reach = diagonal ? 1 : 0;
  for (let y = 1; y < height; y++) {
    let above = rows[y - 1];
    for (let run = rows[y]; run < rows[y + 1]; run++) {
      while (above < rows[y] && to[above] + reach <= from[run]) above++;
      for (let other = above; other < rows[y] && from[other] < to[run] + reach; other++) {
        const [one, two] = [root(run), root(other)];
        parents[Math.max(one, two)] = Math.min(one, two);
      }
    }
  }
  const labels = new Int32Array(from.length);
  const regions = [];
  for (let y = 0; y < height; y++) {
    for (let run = rows[y]; run < rows[y + 1]; run++) {
      const first = root(run);
      if (first === run) {
        labels[run] = regions.length;
        regions.push({ area: 0, box: [width, y, 0, 0], start: y * width + from[run], runs: [] });
      } else labels[run] = labels[first];
      const region = regions[labels[run]];
      region.area += to[run] - from[run];
      region.box[0] = Math.min(region.box[0], from[run]);
      region.box[2] = Math.max(region.box[2], to[run]);
      region.box[3] = y + 1;
      region.runs.push({ y, from: from[run], to: to[run] });
    }
  }
  return { labels, regions };
}

const reachesBorder = ([left, top, right, bottom], width, height) => !left || !top || right === width || bottom === height;

// The runs with their holes filled: background from which no path over pixels' sides leads to the frame's border.
export function filled(runs) {
  const { width, height } = runs;
  const background = complement(runs);
  const { labels, regions } = label(background, false);
  const holes = regions.map(({ box }) => !reachesBorder(box, width, height));
  if (!holes.includes(true)) return runs;
  const result = new RunsBuilder(width, height);
  for (let y = 0; y < height; y++) {
    let gap = background.rows[y];
    for (let run = runs.rows[y]; run < runs.rows[y + 1]; run++) {
      for (; gap < background.rows[y + 1] && background.to[gap] <= runs.from[run]; gap++) {
        if (holes[labels[gap]]) result.add(y, background.from[gap], background.to[gap]);
      }
      result.add(y, runs.from[run], runs.to[run]);
    }
  }
  return result.done();
}

// The region that a place [x, y] lies in, or null.
export function regionAt(regions, [x, y]) {
  const [column, row] = [Math.floor(x), Math.floor(y)];
  const within = ({ box: [left, top, right, bottom] }) => left <= column && column < right && top <= row && row < bottom;
  const covers = (run) => run.y === row && run.from <= column && column < run.to;
  return regions.find((region) => within(region) && region.runs.some(covers)) ?? null;
}

// The background around a place that polyps enclose, as a region, or null where it reaches the frame's border.
export function holeAt(runs, place) {
  const hole = regionAt(label(complement(runs), false).regions, place);
  return hole && !reachesBorder(hole.box, runs.width, runs.height) ? hole : null;
}
