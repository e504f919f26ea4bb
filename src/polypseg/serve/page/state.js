// What all parts of the page share, and how they hear of its changes.

export const state = {
  model: null, // what GET /v1/model says
  labels: { classes: [{ name: "polyp" }], attributes: [] }, // what GET /v1/labels says
  items: [], // of the list: {kind: "image" | "video" | "camera", name, file, state, error, answer, map, frame, …}
  current: null, // the item that is looked at
  opened: null, // the current frame, as `open` gives it
  scene: null, // and analysed
  point: { threshold: 0.5, min_confidence: 0, confidence: "peak", min_area: 0, fill_holes: false }, // see pointOf
  project: null, // the id of the set that is worked through; null: what was added to the page
};

// A video and the frames taken from it have an operating point of their own, which begins where the video was followed;
// all else has the page's.
const filmOf = (item) => item?.film?.item ?? (item?.kind === "video" ? item : null);

export function pointOf(item) {
  const film = filmOf(item);
  return film?.point ?? film?.job?.operating_point ?? state.point;
}

export function movePoint(item, change) {
  (filmOf(item) ?? state).point = { ...pointOf(item), ...change };
}

const events = new EventTarget();

// "item" (detail: an item took a step), "items" (the list is another), "current", "scene", "project".
export function emit(type, detail) {
  events.dispatchEvent(new CustomEvent(type, { detail }));
}

export function when(types, run) {
  for (const type of types.split(" ")) events.addEventListener(type, (event) => run(event.detail));
}

// Runs once before the next refresh of the screen, however often it is asked for.
export function oncePerFrame(run) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      run();
    });
  };
}
