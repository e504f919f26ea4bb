// A camera: its newest frame goes to the service, and when the answer is there, the then newest one. None queues up.
// They go over a stream, which also follows polyps; where there is none, one request a frame.

import * as api from "./api.js";
import { open, takeAnswer } from "./stills.js";

const QUALITY = 0.92; // JPEG
const TOKEN = "polypseg-token"; // where api.js keeps it
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
      [this.model, this.live] = await Promise.all([api.model(), Live.open(this.abort.signal)]);
      await this.run();
    } catch (error) {
      if (!this.stopped) this.stop(error instanceof api.ServiceError ? error.message : explain(error));
    } finally {
      this.live?.close();
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
      if (this.stopped) return;
      const item = { file, shown: file };
      const answer = await this.ask(file, `camera-${String(number).padStart(5, "0")}.jpg`);
      if (this.stopped) return;
      if (!answer) continue; // with the newest frame
      takeAnswer(item, answer);
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

  // What POST /v1/segment says of a frame; null where the queue is full. A stream that breaks is not opened again.
  async ask(file, name) {
    if (this.live) {
      try {
        return this.complete(await this.live.ask(file), name);
      } catch {
        this.live?.close();
        this.live = null;
        if (this.stopped) return null;
      }
    }
    try {
      return await api.segment(file, name, { patient: false, signal: this.abort.signal });
    } catch (error) {
      if (error.status !== 429) throw error;
      await api.pause(error.retryAfter || 1);
      return null;
    }
  }

  // An answer of the stream in the form of POST /v1/segment: a still, of which nothing is followed.
  complete({ width, height, polyps, quality, probability, outside }, name) {
    const { threshold, operating_point, hash } = this.model;
    const found = polyps.map(({ box, area, confidence, contour }) => ({ box, area, confidence, contour }));
    const answer = { source: name, frame: null, time: null, width, height, threshold, operating_point, model: hash };
    return { ...answer, polyps: found, quality, probability, outside };
  }

  stop(line = null) {
    if (this.stopped) return;
    this.stopped = true;
    this.abort.abort();
    this.release();
    this.onEnd(line);
  }

  release() {
    this.live?.close();
    this.stream?.getTracks().forEach((track) => track.stop());
  }
}

// A stream of the service: one question, one answer.
class Live {
  // null where there is none: an older service, too many streams, or a proxy without WebSockets.
  static async open(signal) {
    const live = new Live();
    signal.addEventListener("abort", () => live.close(), { once: true });
    try {
      await live.next("open");
      live.socket.send(JSON.stringify({ format: "jpeg", probability: true }));
      await live.next("message");
      return live;
    } catch {
      live.close();
      return null;
    }
  }

  constructor() {
    const address = new URL("v1/stream", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const token = sessionStorage.getItem(TOKEN);
    // A WebSocket can send no header, so the token goes as a protocol, in base64url.
    const encoded = token && btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    this.socket = new WebSocket(address, ["polypseg.stream", ...(token ? [`polypseg.token.${encoded}`] : [])]);
  }

  async ask(file) {
    if (this.socket.readyState !== WebSocket.OPEN) throw new Error("closed");
    const answer = this.next("message");
    this.socket.send(file);
    const found = JSON.parse((await answer).data);
    if (found.error) throw new api.ServiceError(found.error);
    return found;
  }

  // The next event of a kind; throws when the connection ends before.
  next(kind) {
    return new Promise((resolve, reject) => {
      const ended = new AbortController();
      const { signal } = ended;
      const once = (run) => (event) => {
        ended.abort();
        run(event);
      };
      this.socket.addEventListener(kind, once(resolve), { signal });
      this.socket.addEventListener("close", once(() => reject(new Error("closed"))), { signal });
    });
  }

  close() {
    this.socket.close();
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
