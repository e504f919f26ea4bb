// Grey 8-bit PNGs, byte for byte. A canvas would not do: it writes colours, and some browsers add noise to what is
// read back from one.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

async function through(stream, bytes) {
  const result = new Response(new Blob([bytes]).stream().pipeThrough(stream));
  return new Uint8Array(await result.arrayBuffer());
}

// {pixels: Uint8Array, width, height} of a grey, 8-bit, not interlaced PNG.
export async function decodeGrey(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (!SIGNATURE.every((byte, index) => bytes[index] === byte)) throw new Error("the probability map is no PNG");
  const width = view.getUint32(16);
  const height = view.getUint32(20);
  const [depth, colour, , , interlaced] = bytes.subarray(24, 29);
  if (depth !== 8 || colour !== 0 || interlaced) throw new Error("the probability map is no grey 8-bit PNG");
  const parts = [];
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const rows = await through(new DecompressionStream("deflate"), await new Blob(parts).arrayBuffer());
  return { pixels: unfilter(rows, width, height), width, height };
}

// Each row is told as differences to the pixel on its left (a), above (b) and above left (c).
function unfilter(rows, width, height) {
  const pixels = new Uint8Array(width * height);
  const none = new Uint8Array(width);
  for (let y = 0; y < height; y++) {
    const start = y * (width + 1);
    const row = pixels.subarray(y * width, (y + 1) * width);
    row.set(rows.subarray(start + 1, start + 1 + width));
    const above = y ? pixels.subarray((y - 1) * width, y * width) : none;
    FILTERS[rows[start]](row, above, width);
  }
  return pixels;
}

const FILTERS = [
  () => {},
  (row, _, width) => {
    for (let x = 1; x < width; x++) row[x] += row[x - 1];
  },
  (row, above, width) => {
    for (let x = 0; x < width; x++) row[x] += above[x];
  },
  (row, above, width) => {
    for (let x = 0; x < width; x++) row[x] += ((x ? row[x - 1] : 0) + above[x]) >> 1;
  },
  (row, above, width) => {
    for (let x = 0; x < width; x++) row[x] += x ? paeth(row[x - 1], above[x], above[x - 1]) : above[x];
  },
];

function paeth(a, b, c) {
  const guess = a + b - c;
  const [toA, toB, toC] = [Math.abs(guess - a), Math.abs(guess - b), Math.abs(guess - c)];
  if (toA <= toB && toA <= toC) return a;
  return toB <= toC ? b : c;
}

// A Blob of the PNG.
export async function encodeGrey(pixels, width, height) {
  const rows = new Uint8Array((width + 1) * height); // filter 0 before each row
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header[8] = 8; // bits; colour type 0 is grey
  const content = await through(new CompressionStream("deflate"), rows);
  const parts = [new Uint8Array(SIGNATURE), chunk("IHDR", header), chunk("IDAT", content), chunk("IEND", new Uint8Array())];
  return new Blob(parts, { type: "image/png" });
}

function chunk(name, content) {
  const bytes = new Uint8Array(12 + content.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  view.setUint32(8 + content.length, crc(bytes.subarray(4, 8 + content.length)));
  return bytes;
}

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

export function crc(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = CRC[(sum ^ byte) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}
