// ZIP files, stored and not compressed: pictures are compressed already. No document in here.

import { crc } from "./png.js";

const UTF8 = 0x0800; // flag: names are UTF-8

function record(size, fields) {
  const view = new DataView(new ArrayBuffer(size));
  for (const [at, bytes, value] of fields) {
    if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
  }
  return new Uint8Array(view.buffer);
}

// A Blob of files [{path, file}].
export async function zipOf(files) {
  const [parts, central] = [[], []];
  let offset = 0;
  for (const { path, file } of files) {
    const name = new TextEncoder().encode(path);
    const sum = crc(new Uint8Array(await file.arrayBuffer()));
    const shared = (at) => [[at, 2, 20], [at + 2, 2, UTF8], [at + 10, 4, sum], [at + 14, 4, file.size], [at + 18, 4, file.size], [at + 22, 2, name.length]];
    parts.push(record(30, [[0, 4, 0x04034b50], ...shared(4)]), name, file);
    central.push(record(46, [[0, 4, 0x02014b50], [4, 2, 20], ...shared(6), [42, 4, offset]]), name);
    offset += 30 + name.length + file.size;
  }
  const size = central.reduce((sum, part) => sum + part.length, 0);
  const end = record(22, [[0, 4, 0x06054b50], [8, 2, files.length], [10, 2, files.length], [12, 4, size], [16, 4, offset]]);
  return new Blob([...parts, ...central, end], { type: "application/zip" });
}
