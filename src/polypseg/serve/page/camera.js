// A camera: its newest frame goes to the service, and when the answer is there, the then newest one. None queues up.

import * as api from "./api.js";
import { open, takeAnswer } from "./stills.js";

const QUALITY = 0.92; // JPEG
const WINDOW = 10; // answers that the rate is taken over

export class Camera {
  // onFrame(opened, {rate, seconds}) with each answer; onEnd(line or null) when it is over.
  constructor(onFrame, onEnd) {
    [this.onFrame, this.onEnd] = [onFrame, onEnd];
    this.stopped = false;
    this.abort = new AbortController();
  }

  async start() {
    try {
      if (!navigator.mediaDevices) throw new Error("the browser offers cameras to https and localhost pages only");
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } }, audio: false });
      if (this.stopped) return this.release();
      this.video = document.createElement("video");
      this.video.muted = true;
      this.video.playsInline = true;
      this.video.srcObject = this.stream;
      this.stream.getVideoTracks()[0].addEventListener("ended", () => this.stop("The camera was disconnected"));
      await this.video.play();
      await this.run();
    } catch (error) {
      if (!this.stopped) this.stop(error instanceof api.ServiceError ? error.message : explain(error));
    }
  }

  async run() {
    const times = [];
    for (let number = 0; !this.stopped; number++) {
      const began = performance.now();
      const { videoWidth: width, videoHeight: height } = this.video;
      const canvas = new OffscreenCanvas(width, height);
      canvas.getContext("2d").drawImage(this.video, 0, 0);
      const file = await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
      const item = { file, shown: file };
      const name = `camera-${String(number).padStart(5, "0")}.jpg`;
      try {
        takeAnswer(item, await api.segment(file, name, { patient: false, signal: this.abort.signal }));
      } catch (error) {
        if (error.status !== 429) throw error;
        await api.pause(error.retryAfter || 1);
        continue; // with the newest frame
      }
      const opened = await open(item, canvas); // the very frame that was answered
      if (this.stopped) return;
      const now = performance.now();
      times.push(now);
      if (times.length > WINDOW) times.shift();
      const rate = times.length > 1 ? (1000 * (times.length - 1)) / (now - times[0]) : 0;
      this.onFrame(opened, { rate, seconds: (now - began) / 1000 });
      await new Promise(requestAnimationFrame); // none while the page is hidden
    }
  }

  stop(line = null) {
    if (this.stopped) return;
    this.stopped = true;
    this.abort.abort();
    this.release();
    this.onEnd(line);
  }

  release() {
    this.stream?.getTracks().forEach((track) => track.stop());
  }
}

function explain(error) {
  const known = {
    NotAllowedError: "the browser was not allowed to use it; allow it beside the address",
    NotFoundError: "none was found; plug one in",
    NotReadableError: "another program uses it; close that one",
  };
  return `Camera: ${known[error.name] ?? error.message}`;
}
