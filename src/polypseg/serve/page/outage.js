// The service is away: one banner says so, one question after another asks whether it is back, and all who wait go on.

import { $, announce, on } from "./dom.js";
import { pause } from "./api.js";

const LONGEST = 10; // seconds between two questions

export class Outage {
  // count() says how many frames wait.
  constructor(count) {
    this.count = count;
    this.waiting = null; // a promise, while it lasts
    on("outage-now", "click", () => this.hurry?.());
  }

  // Resolves when the service responds again; at once for those who were aborted.
  over(signal) {
    this.waiting ??= this.ask().finally(() => (this.waiting = null));
    return Promise.race([this.waiting, new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }))]);
  }

  async ask() {
    $("outage").hidden = false;
    announce("The service does not respond. The page tries again by itself.");
    for (let seconds = 1; ; seconds = Math.min(2 * seconds, LONGEST)) {
      for (let left = seconds; left > 0; left--) {
        const waits = this.count();
        const what = waits ? ` ${waits} frame${waits > 1 ? "s wait" : " waits"};` : "";
        $("outage-text").textContent = `The service does not respond.${what} trying again in ${left} s.`;
        if (await Promise.race([pause(1).then(() => false), new Promise((resolve) => (this.hurry = () => resolve(true)))])) break;
      }
      const response = await fetch("health/ready").catch(() => null);
      if (response?.ok) break;
    }
    $("outage").hidden = true;
    announce("The service responds again.");
  }
}
