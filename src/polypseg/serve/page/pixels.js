// Changes of a mask (Uint8Array of 0 and 1): each gives the box [left, top, right, bottom] that it touched. No document in
// here.

const clamp = (value, most) => Math.min(Math.max(value, 0), most);

// Pixels of row y whose centres lie between x positions.
function fillRow(mask, width, y, from, to, value) {
  const [start, end] = [clamp(Math.ceil(from - 0.5), width), clamp(Math.floor(to - 0.5) + 1, width)];
  if (end > start) mask.fill(value, y * width + start, y * width + end);
}

// Every pixel whose centre is within the radius of the way from one place to another.
export function stroke(mask, width, height, [fromX, fromY], [toX, toY], radius, value) {
  const [alongX, alongY] = [toX - fromX, toY - fromY];
  const length = Math.hypot(alongX, alongY);
  const box = [
    clamp(Math.floor(Math.min(fromX, toX) - radius), width),
    clamp(Math.floor(Math.min(fromY, toY) - radius), height),
    clamp(Math.ceil(Math.max(fromX, toX) + radius), width),
    clamp(Math.ceil(Math.max(fromY, toY) + radius), height),
  ];
  for (let y = box[1]; y < box[3]; y++) {
    let [least, most] = [Infinity, -Infinity];
    const take = (from, to) => {
      if (to < from) return;
      least = Math.min(least, from);
      most = Math.max(most, to);
    };
    for (const [x, centre] of [[fromX, fromY], [toX, toY]]) {
      const rest = radius ** 2 - (y + 0.5 - centre) ** 2;
      if (rest >= 0) take(x - Math.sqrt(rest), x + Math.sqrt(rest));
    }
    if (length) {
      // Beside the way: within the radius of its line, and between its ends.
      const off = y + 0.5 - fromY;
      const [one, two] = between(alongY, -off * alongX, -radius * length, radius * length);
      const [three, four] = between(alongX, off * alongY, 0, length ** 2);
      take(fromX + Math.max(one, three), fromX + Math.min(two, four));
    }
    if (most >= least) fillRow(mask, width, y, least, most, value);
  }
  return box;
}

// The x for which least <= slope * x + rest <= most.
function between(slope, rest, least, most) {
  if (!slope) return least <= rest && rest <= most ? [-Infinity, Infinity] : [Infinity, -Infinity];
  const ends = [(least - rest) / slope, (most - rest) / slope];
  return slope > 0 ? ends : ends.reverse();
}

// Every pixel whose centre lies in a polygon of corners [x, y], by the even-odd rule.
export function polygon(mask, width, height, corners, value) {
  const [xs, ys] = [corners.map(([x]) => x), corners.map(([, y]) => y)];
  const box = [
    clamp(Math.floor(Math.min(...xs)), width),
    clamp(Math.floor(Math.min(...ys)), height),
    clamp(Math.ceil(Math.max(...xs)), width),
    clamp(Math.ceil(Math.max(...ys)), height),
  ];
  for (let y = box[1]; y < box[3]; y++) {
    const centre = y + 0.5;
    const crossings = [];
    corners.forEach(([x, top], index) => {
      const [nextX, bottom] = corners[(index + 1) % corners.length];
      if (top <= centre !== bottom <= centre) crossings.push(x + ((centre - top) / (bottom - top)) * (nextX - x));
    });
    crossings.sort((one, other) => one - other);
    for (let index = 0; index + 1 < crossings.length; index += 2) {
      fillRow(mask, width, y, crossings[index], crossings[index + 1], value);
    }
  }
  return box;
}

// A region {box, runs}.
export function region(mask, width, { box, runs }, value) {
  for (const { y, from, to } of runs) mask.fill(value, y * width + from, y * width + to);
  return box;
}

// Each pixel becomes what most within the radius are: thin tips go, small holes and notches close.
export function smooth(mask, width, height, radius) {
  const box = boundsOf(mask, width, height, radius);
  const [left, top, right, bottom] = box;
  if (left >= right) return box;
  const before = mask.slice();
  const half = ((2 * radius + 1) ** 2) / 2;
  const across = right - left;
  const columns = new Int32Array(across); // of each column the sum over the rows around y
  const add = (y, sign) => {
    const start = clamp(y, height - 1) * width + left;
    for (let x = 0; x < across; x++) columns[x] += sign * before[start + x];
  };
  for (let y = top - radius; y < top + radius; y++) add(y, 1);
  for (let y = top; y < bottom; y++) {
    add(y + radius, 1);
    let sum = 0;
    for (let x = -radius; x < radius; x++) sum += columns[clamp(x, across - 1)];
    for (let x = 0; x < across; x++) {
      sum += columns[Math.min(x + radius, across - 1)];
      mask[y * width + left + x] = sum > half ? 1 : 0;
      sum -= columns[Math.max(x - radius, 0)];
    }
    add(y - radius, -1);
  }
  return box;
}

// The box around all that is 1, grown by so many pixels.
function boundsOf(mask, width, height, margin) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let at = mask.indexOf(1); at >= 0; ) {
    const y = Math.floor(at / width);
    const row = mask.subarray(y * width, (y + 1) * width);
    left = Math.min(left, row.indexOf(1));
    right = Math.max(right, row.lastIndexOf(1) + 1);
    top = Math.min(top, y);
    bottom = y + 1;
    at = mask.indexOf(1, (y + 1) * width);
  }
  if (left >= right) return [0, 0, 0, 0];
  return [clamp(left - margin, width), clamp(top - margin, height), clamp(right + margin, width), clamp(bottom + margin, height)];
}

// Where two masks differ within a box, as pairs of indices [from, to, from, to, …]: Int32Array. Flipping them leads from
// either to the other.
export function difference(before, after, width, [left, top, right, bottom]) {
  const pairs = [];
  for (let y = top; y < bottom; y++) {
    for (let at = y * width + left, end = y * width + right; at < end; at++) {
      if (before[at] === after[at]) continue;
      const from = at;
      while (at < end && before[at] !== after[at]) at++;
      pairs.push(from, at);
    }
  }
  return Int32Array.from(pairs);
}

export function flip(mask, pairs) {
  for (let index = 0; index < pairs.length; index += 2) {
    for (let at = pairs[index]; at < pairs[index + 1]; at++) mask[at] ^= 1;
  }
}
