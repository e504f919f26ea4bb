// Mouse, pen and fingers on a Viewer: its tool draws with the main button or one finger; two fingers, another button, or
// a drag without a tool move the picture; two fingers and the wheel zoom.

const STILL = 4; // screen pixels that a click may wander

export function listen(viewer) {
  const { canvas } = viewer;
  const pointers = new Map(); // id → [x, y] of those that are down
  let grip = null; // of a drag that moves the picture: how far it went
  let pinched = false; // until all fingers are up again

  canvas.addEventListener("pointerdown", (event) => {
    if (!viewer.scene) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (pointers.size > 1) {
      pinched = true;
      viewer.tool?.cancel();
    } else if (viewer.tool && !viewer.tool.pans && event.button === 0) {
      viewer.tool.down(viewer.toFrame(event.offsetX, event.offsetY), event);
    } else grip = { far: 0, clicks: event.button === 0 && !viewer.tool };
  });

  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    const before = pointers.get(event.pointerId);
    if (before) pointers.set(event.pointerId, [x, y]);
    if (pinched) {
      if (before && pointers.size === 2) pinch(event.pointerId, before, [x, y]);
    } else if (grip && before) {
      grip.far += Math.hypot(x - before[0], y - before[1]);
      if (grip.far >= STILL) viewer.panBy(x - before[0], y - before[1]);
    } else {
      // All places since the last event: a quick stroke stays round.
      for (const one of event.getCoalescedEvents?.() ?? []) viewer.tool?.move(viewer.toFrame(one.offsetX, one.offsetY));
      viewer.tool?.move(viewer.toFrame(x, y));
    }
  });

  function pinch(id, before, now) {
    const other = [...pointers].find(([key]) => key !== id)[1];
    const [was, is] = [before, now].map(([x, y]) => ({ far: Math.hypot(x - other[0], y - other[1]), x: (x + other[0]) / 2, y: (y + other[1]) / 2 }));
    viewer.panBy(is.x - was.x, is.y - was.y);
    if (was.far > 1) viewer.zoomBy(is.far / was.far, is.x, is.y);
  }

  function end(event, done) {
    if (!pointers.delete(event.pointerId)) return;
    if (!pinched && !grip) done ? viewer.tool?.up(event) : viewer.tool?.cancel();
    else if (!pinched && done && grip.clicks && grip.far < STILL) viewer.pick(viewer.toFrame(event.offsetX, event.offsetY));
    grip = null;
    if (!pointers.size) pinched = false;
  }
  canvas.addEventListener("pointerup", (event) => end(event, true));
  canvas.addEventListener("pointercancel", (event) => end(event, false));
  canvas.addEventListener("pointerleave", () => viewer.tool?.leave());
  canvas.addEventListener("contextmenu", (event) => viewer.tool && event.preventDefault());
  canvas.addEventListener("dblclick", () => viewer.tool?.finish?.());
  canvas.addEventListener(
    "wheel",
    (event) => {
      // Where the page itself scrolls, the wheel is its own.
      const scrolls = document.documentElement.scrollHeight > document.documentElement.clientHeight + 1;
      if (scrolls && !event.ctrlKey) return;
      event.preventDefault();
      viewer.zoomBy(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    },
    { passive: false },
  );
}
