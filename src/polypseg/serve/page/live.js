// A camera as an item of the list.

import * as api from "./api.js";
import { Camera } from "./camera.js";
import { $, on, tell } from "./dom.js";
import * as items from "./items.js";
import { show, showLive } from "./stage.js";
import { state, when } from "./state.js";
import { illustrate, takeAnswer } from "./stills.js";

let camera = null;

function toggle() {
  if (camera) return camera.stop();
  const item = items.newItem("camera", "Camera");
  item.state = "starting";
  item.onRemove = () => camera?.stop();
  camera = new Camera(
    (frame, { rate, seconds }) => {
      Object.assign(frame.item, { live: item, anyway: item.anyway });
      item.state = rate ? `live, ${rate.toFixed(1)} frames/s` : "live";
      items.list.update(item);
      showLive(item, frame);
      if (item === state.current) $("stage-facts").textContent = `${frame.width} × ${frame.height} pixels, ${Math.round(1000 * seconds)} ms a frame`;
    },
    (problem) => {
      camera = null;
      $("camera").setAttribute("aria-pressed", "false");
      if (problem) tell(problem, true);
      if (state.items.includes(item)) items.drop(item);
    },
  );
  $("camera").setAttribute("aria-pressed", "true");
  items.add([item]);
  show(item);
  camera.start();
}

async function keepFrame() {
  const { file } = state.opened.item;
  const name = `camera-${new Date().toISOString().replace(/[-:]|\..*/g, "").replace("T", "-")}.jpg`;
  const item = items.newItem("image", name, new File([file], name, { type: file.type }));
  try {
    takeAnswer(item, await api.segment(file, name)); // a stream does not say its hash
  } catch (error) {
    return tell(error.message, true);
  }
  await illustrate(item);
  item.state = "done";
  items.add([item]);
  items.changed(item);
  tell(`Kept as ${name}`);
}

when("project", () => state.project && camera?.stop());
on("camera", "click", toggle);
on("keep", "click", keepFrame);
