// Where the labels of polyps go: at their outlines, inside the frame, not over each other. No document in here.

const overlap = ([left, top, right, bottom], [otherLeft, otherTop, otherRight, otherBottom]) =>
  Math.max(0, Math.min(right, otherRight) - Math.max(left, otherLeft)) *
  Math.max(0, Math.min(bottom, otherBottom) - Math.max(top, otherTop));

// For each polyp's box the box of its label. sizes: [width, height] of each, in the boxes' unit; bounds: where they may be.
export function placeLabels(boxes, sizes, bounds) {
  const placed = [];
  boxes.forEach((box, index) => {
    const candidates = around(box, sizes[index]).map((place) => within(place, sizes[index], bounds));
    const cost = (label) =>
      100 * placed.reduce((sum, other) => sum + overlap(label, other), 0) +
      boxes.reduce((sum, other) => sum + overlap(label, other), 0);
    let best = candidates[0];
    for (const candidate of candidates) if (cost(candidate) < cost(best)) best = candidate;
    placed.push(best);
  });
  return placed;
}

// Corners of places, the best first: above, below, beside, then further and further above and below.
function around([left, top, right, bottom], [width, height]) {
  const places = [[left, top - height], [right - width, top - height], [left, bottom], [right - width, bottom], [right, top], [left - width, top]];
  for (let step = 1; step <= 8; step++) places.push([left, top - (step + 1) * height], [left, bottom + step * height]);
  return places;
}

function within([x, y], [width, height], [left, top, right, bottom]) {
  const [startX, startY] = [Math.max(left, Math.min(x, right - width)), Math.max(top, Math.min(y, bottom - height))];
  return [startX, startY, startX + width, startY + height];
}
