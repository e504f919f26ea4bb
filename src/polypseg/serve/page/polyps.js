// From a probability map to polyps, by the rules of the Python package (segmentation.py, operating_point.py,
// outputs.py), so that threshold and least confidence can be moved without asking the service.

// A map {pixels: Uint8Array (255 is 1), width, height} at a frame's size, bilinear: Float32Array, 0..1.
export function enlarge(map, width, height) {
  const values = new Float32Array(width * height);
  const across = samples(map.width, width);
  const down = samples(map.height, height);
  const row = new Float32Array(map.width);
  for (let y = 0; y < height; y++) {
    const [top, bottom, weight] = [down.low[y] * map.width, down.high[y] * map.width, down.weight[y]];
    for (let x = 0; x < map.width; x++) {
      row[x] = (map.pixels[top + x] * (1 - weight) + map.pixels[bottom + x] * weight) / 255;
    }
    for (let x = 0, at = y * width; x < width; x++, at++) {
      const part = across.weight[x];
      values[at] = row[across.low[x]] * (1 - part) + row[across.high[x]] * part;
    }
  }
  return values;
}

// For each of `to` pixels the two of `from` between whose centres its own lies, and the weight of the second.
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
  return { low, high, weight };
}

// Uint8Array of 0 and 1.
export function maskOf(probability, threshold) {
  const least = Math.fround(threshold);
  const mask = new Uint8Array(probability.length);
  for (let at = 0; at < mask.length; at++) mask[at] = probability[at] >= least ? 1 : 0;
  return mask;
}

// What an operating point (`operating_point` of the service) makes of a map at the frame's size: {mask, polyps, faint}.
// faint: regions of too little confidence, which are in neither of the others. outside: where the frame shows nothing of
// the patient, {pixels (255 there), width, height}, or null.
export function findPolyps(probability, width, height, point, outside = null) {
  const mask = clean(maskOf(probability, point.threshold), width, height, point, outside);
  const found = polypsOf(mask, probability, width, height, point.confidence);
  const least = Math.fround(point.min_confidence ?? 0);
  const polyps = found.filter(({ confidence }) => Math.fround(confidence) >= least);
  const faint = found.filter(({ confidence }) => Math.fround(confidence) < least);
  if (faint.length) {
    const { labels, regions } = label(mask, width, height);
    const dropped = new Set(faint.map(({ start }) => start));
    const gone = regions.map(({ start }) => dropped.has(start));
    for (let at = 0; at < mask.length; at++) if (labels[at] && gone[labels[at] - 1]) mask[at] = 0;
  }
  return { mask, polyps, faint };
}

// The mask with holes filled, without regions smaller than a share of the frame, and without those of which more than
// half lies outside.
function clean(mask, width, height, { min_area = 0, fill_holes = false }, outside) {
  if (fill_holes) fillHoles(mask, width, height);
  if (!min_area && !outside) return mask;
  const { labels, regions } = label(mask, width, height);
  const beyond = new Float64Array(regions.length + 1);
  for (let y = 0, at = 0; outside && y < height; y++) {
    const row = Math.floor(((y + 0.5) * outside.height) / height) * outside.width;
    for (let x = 0; x < width; x++, at++) {
      if (labels[at] && outside.pixels[row + Math.floor(((x + 0.5) * outside.width) / width)]) beyond[labels[at]]++;
    }
  }
  const kept = regions.map(({ area }, index) => area >= min_area * width * height && 2 * beyond[index + 1] <= area);
  for (let at = 0; at < mask.length; at++) if (labels[at] && !kept[labels[at] - 1]) mask[at] = 0;
  return mask;
}

// A hole is background from which no path over pixels' sides leads to the frame's border.
function fillHoles(mask, width, height) {
  const outside = new Uint8Array(mask.length);
  const stack = [];
  const visit = (at) => {
    if (!mask[at] && !outside[at]) {
      outside[at] = 1;
      stack.push(at);
    }
  };
  for (let x = 0; x < width; x++) [x, (height - 1) * width + x].forEach(visit);
  for (let y = 0; y < height; y++) [y * width, y * width + width - 1].forEach(visit);
  while (stack.length) {
    const at = stack.pop();
    const x = at % width;
    if (x) visit(at - 1);
    if (x < width - 1) visit(at + 1);
    if (at >= width) visit(at - width);
    if (at < mask.length - width) visit(at + width);
  }
  for (let at = 0; at < mask.length; at++) mask[at] |= 1 - outside[at];
}

// The 8-connected regions: labels (Int32Array, 0 is none, region i has i + 1), and of each its area, box and first pixel.
function label(mask, width, height) {
  const labels = new Int32Array(mask.length);
  const regions = [];
  const stack = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    const number = regions.length + 1;
    const region = { area: 0, box: [width, height, 0, 0], start };
    labels[start] = number;
    stack.push(start);
    while (stack.length) {
      const at = stack.pop();
      const y = Math.floor(at / width);
      const x = at - y * width;
      region.area++;
      const { box } = region;
      if (x < box[0]) box[0] = x;
      if (y < box[1]) box[1] = y;
      if (x >= box[2]) box[2] = x + 1;
      if (y >= box[3]) box[3] = y + 1;
      for (let ny = Math.max(y - 1, 0); ny <= Math.min(y + 1, height - 1); ny++) {
        for (let nx = Math.max(x - 1, 0); nx <= Math.min(x + 1, width - 1); nx++) {
          const next = ny * width + nx;
          if (mask[next] && !labels[next]) {
            labels[next] = number;
            stack.push(next);
          }
        }
      }
    }
    regions.push(region);
  }
  return { labels, regions };
}

// The regions of a mask, largest first: {box: [xmin, ymin, xmax, ymax], area, confidence, contour, rings, start}.
// kind: what the confidence is, "peak" or "mean".
export function polypsOf(mask, probability, width, height, kind = "peak") {
  const { labels, regions } = label(mask, width, height);
  const sums = new Float64Array(regions.length + 1);
  const peaks = new Float64Array(regions.length + 1);
  for (let at = 0; at < labels.length; at++) {
    sums[labels[at]] += probability[at];
    if (probability[at] > peaks[labels[at]]) peaks[labels[at]] = probability[at];
  }
  const polyps = regions.map(({ area, box, start }, index) => {
    const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && labels[y * width + x] === index + 1;
    return {
      box,
      area,
      confidence: kind === "mean" ? sums[index + 1] / area : peaks[index + 1],
      start,
      contour: contourOf(inside, start % width, Math.floor(start / width)),
      rings: ringsOf(inside, box),
    };
  });
  return polyps.sort((one, other) => other.area - one.area);
}

// East, then clockwise (y runs down).
const AROUND = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]];

// The centres of the pixels along the outer boundary, counterclockwise, only those where it turns (Suzuki and Abe's
// border following). The first pixel is the leftmost of the topmost.
function contourOf(inside, startX, startY) {
  const isInside = (x, y, way) => inside(x + AROUND[way][0], y + AROUND[way][1]);
  let last = 4;
  do last = (last + 1) % 8;
  while (last !== 4 && !isInside(startX, startY, last));
  if (last === 4) return [[startX, startY]];
  const [endX, endY] = [startX + AROUND[last][0], startY + AROUND[last][1]];
  const points = [];
  let [x, y, from, before] = [startX, startY, last, (last + 4) % 8];
  for (;;) {
    let way = from;
    do way = (way + 7) % 8;
    while (!isInside(x, y, way));
    if (way !== before) points.push([x, y]);
    before = way;
    const [nextX, nextY] = [x + AROUND[way][0], y + AROUND[way][1]];
    if (nextX === startX && nextY === startY && x === endX && y === endY) return points;
    [x, y, from] = [nextX, nextY, (way + 4) % 8];
  }
}

// The exact outlines along the edges of the pixels, each a list of corners [x, y]: outer ones clockwise, holes
// counterclockwise. Filled by the even-odd rule they give the region again; parts that touch at a corner are apart.
function ringsOf(inside, [left, top, right, bottom]) {
  const width = right - left;
  const seen = new Uint8Array(width * (bottom - top)); // pixels whose upper edge is part of a ring already
  const rings = [];
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      if (inside(x, y) && !inside(x, y - 1) && !seen[(y - top) * width + x - left]) rings.push(ringFrom(x, y));
    }
  }
  return rings;

  function ringFrom(startX, startY) {
    const ring = [];
    let [x, y, way] = [startX, startY, 0]; // east, south, west, north; the region lies to the right
    do {
      if (way === 0) seen[(y - top) * width + x - left] = 1;
      x += [1, 0, -1, 0][way];
      y += [0, 1, 0, -1][way];
      const ahead = [[x, y], [x - 1, y], [x - 1, y - 1], [x, y - 1]]; // on the right, by the way
      const turn = !inside(...ahead[way]) ? 1 : inside(...ahead[(way + 3) % 4]) ? 3 : 0;
      if (turn) ring.push([x, y]);
      way = (way + turn) % 4;
    } while (x !== startX || y !== startY || way !== 0);
    return ring;
  }
}

// Whether a ring is a hole's.
export function isHole(ring) {
  let area = 0;
  ring.forEach(([x, y], index) => {
    const [nextX, nextY] = ring[(index + 1) % ring.length];
    area += x * nextY - nextX * y;
  });
  return area < 0;
}
