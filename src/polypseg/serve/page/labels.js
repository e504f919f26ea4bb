// Where the labels of polyps go: at their outlines, inside the frame, not over each other. No document in here.

const overlap = ([left, top, right, bottom], [otherLeft, otherTop, otherRight, otherBottom]) =>
  Math.max(0, Math.min(right, otherRight) - Math.max(left, otherLeft)) *
  Math.max(0, Math.min(bottom, otherBottom) - Math.max(top, otherTop));

// For each polyp {box, contour} the box of its label. sizes: [width, height] of each, in the boxes' unit; bounds: where they
// may be.
export function placeLabels(polyps, sizes, bounds) {
  const placed = [];
  const boxes = polyps.map(({ box }) => box);
  polyps.forEach((polyp, index) => {
    const candidates = around(polyp, sizes[index]).map((place) => within(place, sizes[index], bounds));
    const cost = (label) =>
      100 * placed.reduce((sum, other) => sum + overlap(label, other), 0) +
      boxes.reduce((sum, other) => sum + overlap(label, other), 0);
    let best = candidates[0];
    for (const candidate of candidates) if (cost(candidate) < cost(best)) best = candidate;
    placed.push(best);
  });
  return placed;
}

// Corners of places, the best first: above, below and beside the outline where it reaches furthest, then further and
// further above and below.
function around({ box: [left, top, right, bottom], contour }, [width, height]) {
  const places = [];
  const furthest = (better) => contour.reduce((best, point) => (better(point, best) ? point : best));
  if (contour?.length) {
    const [above, below] = [furthest(([, y], [, best]) => y < best), furthest(([, y], [, best]) => y > best)];
    const [before, after] = [furthest(([x], [best]) => x < best), furthest(([x], [best]) => x > best)];
    places.push([above[0] - width / 2, top - height], [below[0] - width / 2, bottom], [right, after[1] - height / 2], [left - width, before[1] - height / 2]);
  }
  places.push([left, top - height], [right - width, top - height], [left, bottom], [right - width, bottom]);
  for (let step = 1; step <= 8; step++) places.push([left, top - (step + 1) * height], [left, bottom + step * height]);
  return places;
}

function within([x, y], [width, height], [left, top, right, bottom]) {
  const [startX, startY] = [Math.max(left, Math.min(x, right - width)), Math.max(top, Math.min(y, bottom - height))];
  return [startX, startY, startX + width, startY + height];
}
