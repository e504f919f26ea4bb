// Polyps drawn over a frame, the same way on the screen and in a downloaded overlay.

// As in Python's overlays: told apart also by people with red-green colour blindness, and rare in the colon.
export const COLOUR = [255, 230, 0];
const YELLOW = `rgb(${COLOUR})`;
// Probability from 0 to 1, evenly spaced, from clear to solid: no reds, which the mucosa has itself.
const HEAT = [[60, 0, 90], [55, 70, 150], [20, 150, 150], [90, 205, 95], [255, 230, 0]];

// One outline of rings, for filling (even-odd) and stroking.
export function pathOf(polyps) {
  const path = new Path2D();
  for (const ring of polyps.flatMap((polyp) => polyp.rings)) {
    ring.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}

// A canvas of the map's own size; drawn larger, the browser makes it smooth.
export function heatOf(map) {
  const canvas = new OffscreenCanvas(map.width, map.height);
  const image = new ImageData(map.width, map.height);
  const table = Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (HEAT.length - 1);
    const low = Math.min(Math.floor(place), HEAT.length - 2);
    return HEAT[low].map((value, channel) => value + (place - low) * (HEAT[low + 1][channel] - value));
  });
  map.pixels.forEach((level, at) => image.data.set([...table[level], level], 4 * at));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Into a context whose unit is a pixel of the frame. pixel: the size of one on the screen (or in the file) in that unit.
export function paintPolyps(context, { width, height, path, faintPath, heat, polyps }, { mode, opacity, numbers = true }, pixel) {
  context.save();
  if (faintPath && (mode === "contour" || mode === "fill")) {
    context.globalAlpha = 0.6;
    context.setLineDash([4 * pixel, 4 * pixel]);
    for (const [colour, line] of [["rgb(0 0 0 / 60%)", 2.5], ["white", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * pixel;
      context.stroke(faintPath);
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }
  if (mode === "heat" && heat) {
    context.globalAlpha = opacity;
    context.drawImage(heat, 0, 0, width, height);
  } else if (mode === "fill") {
    context.globalAlpha = opacity;
    context.fillStyle = YELLOW;
    context.fill(path, "evenodd");
  } else if (mode === "contour") {
    context.globalAlpha = opacity;
    context.lineJoin = "round";
    for (const [colour, line] of [["rgb(0 0 0 / 60%)", 4], [YELLOW, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * pixel;
      context.stroke(path);
    }
  }
  context.restore();
  if (numbers && mode !== "off") polyps.forEach((polyp, index) => paintNumber(context, index + 1, polyp.box, pixel));
}

function paintNumber(context, number, [left, top], pixel) {
  const size = 18 * pixel;
  const [x, y] = [Math.max(left - size, 0), Math.max(top - size, 0)];
  context.fillStyle = "rgb(0 0 0 / 75%)";
  context.fillRect(x, y, size, size);
  context.fillStyle = YELLOW;
  context.font = `bold ${13 * pixel}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(String(number), x + size / 2, y + size / 2 + pixel);
}

export function paintBox(context, [left, top, right, bottom], pixel) {
  for (const [colour, line] of [["rgb(0 0 0 / 60%)", 3], ["white", 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = line * pixel;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}
