// The outlines of a region. No document in here.

// {contour, rings} of a region {box, runs, start} of a frame so wide.
export function outlineOf({ box, runs, start }, frameWidth) {
  const [left, top, right, bottom] = box;
  // With a border of background, so that no place needs to be checked.
  const width = right - left + 2;
  const cells = new Uint8Array(width * (bottom - top + 2));
  for (const { y, from, to } of runs) cells.fill(1, (y - top + 1) * width + from - left + 1, (y - top + 1) * width + to - left + 1);
  const inside = (x, y) => cells[(y - top + 1) * width + x - left + 1] === 1;
  return {
    contour: contourOf(inside, start % frameWidth, Math.floor(start / frameWidth)),
    rings: ringsOf(cells, inside, runs, box),
  };
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

// Of the ways east, south, west and north: their steps, and where the pixel on their right lies from their end.
const [EAST, SOUTH, LEFT, UP] = [[1, 0, -1, 0], [0, 1, 0, -1], [0, 1, 1, 0], [0, 0, 1, 1]];

// The exact outlines along the edges of the pixels, each a list of corners [x, y]: outer ones clockwise, holes
// counterclockwise. Filled by the even-odd rule they give the region again; parts that touch at a corner are apart.
function ringsOf(cells, inside, runs, [left, top, right, bottom]) {
  const width = right - left;
  const seen = new Uint8Array(width * (bottom - top)); // pixels whose upper edge is part of a ring already
  const rings = [];
  for (const { y, from, to } of runs) {
    // Only where there is background above.
    const above = (y - top) * (width + 2) - left + 1;
    for (let x = cells.indexOf(0, above + from) - above; x < to; x = cells.indexOf(0, above + x + 1) - above) {
      if (!seen[(y - top) * width + x - left]) rings.push(ringFrom(x, y));
    }
  }
  return rings;

  function ringFrom(startX, startY) {
    const ring = [];
    let [x, y, way] = [startX, startY, 0]; // east, south, west, north; the region lies to the right
    do {
      if (way === 0) seen[(y - top) * width + x - left] = 1;
      x += EAST[way];
      y += SOUTH[way];
      const turn = turnAt(x, y, way);
      if (turn) ring.push([x, y]);
      way = (way + turn) % 4;
    } while (x !== startX || y !== startY || way !== 0);
    return ring;
  }

  // Quarters of a circle, clockwise.
  function turnAt(x, y, way) {
    if (!ahead(x, y, way)) return 1;
    return ahead(x, y, (way + 3) % 4) ? 3 : 0;
  }

  // The pixel on the right, by the way.
  function ahead(x, y, way) {
    return inside(x - LEFT[way], y - UP[way]);
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
