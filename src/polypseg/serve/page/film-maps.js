// The probability maps of a video's frames, so that the threshold acts on the frame that is shown. They are asked of the
// service one at a time, and only while the video stands still: while it plays, they would come too late.

import * as api from "./api.js";
import { matched } from "./classes.js";
import { tell } from "./dom.js";
import { findPolyps } from "./polyps.js";
import { surfaceOf, takeAnswer } from "./stills.js";
import { pngOf } from "./video.js";

const REMEMBERED = 60; // frames

export class FilmMaps {
  // changed(): one more is there.
  constructor(video, changed) {
    Object.assign(this, { video, changed });
    this.clear();
  }

  clear() {
    this.asking?.abort();
    this.asking = null;
    this.found = new Map();
  }

  // What the operating point makes of a frame: polyps with the numbers of the record's; null where its map is not there yet.
  at(index, point, record) {
    const map = this.found.get(index);
    if (!map) return null;
    const { polyps } = findPolyps(map.surface, point, map.outside);
    const entries = record.polyps.filter(({ id }) => id !== null).map(({ id, contour, box }) => ({ id, at: contour[0], box }));
    const known = matched(polyps, entries);
    return polyps.map((polyp, at) => ({ ...polyp, number: known[at]?.id ?? "" }));
  }

  // Asks for the frame that is shown; index(): its number.
  async ask(index) {
    const { video } = this;
    if (this.asking || !video.paused || video.seeking || video.readyState < 2 || this.found.has(index())) return;
    const asking = (this.asking = new AbortController());
    const which = index();
    try {
      const item = {};
      takeAnswer(item, await api.segment(await pngOf(video), "frame.png", { signal: asking.signal }));
      if (asking.signal.aborted) return;
      this.found.set(which, await surfaceOf(item));
      if (this.found.size > REMEMBERED) this.found.delete(this.found.keys().next().value);
      this.asking = null;
      this.changed(); // which asks again where another frame is shown by now
    } catch (error) {
      if (!asking.signal.aborted) tell(`The threshold could not be moved: ${error.message}`, true);
    } finally {
      if (this.asking === asking) this.asking = null;
    }
  }
}
