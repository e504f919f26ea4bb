// Classes and attributes of polyps: which region has which. No document in here.

// Whether a polyp contains a pixel [x, y]: by the even-odd rule on its rings.
export function covers({ box: [left, top, right, bottom], rings }, [x, y]) {
  if (x < left || y < top || x >= right || y >= bottom) return false;
  let inside = false;
  for (const ring of rings) {
    ring.forEach(([fromX, fromY], index) => {
      const [toX, toY] = ring[(index + 1) % ring.length];
      if (fromX === toX && fromX > x && fromY <= y !== toY <= y) inside = !inside;
    });
  }
  return inside;
}

const shared = ([left, top, right, bottom], [otherLeft, otherTop, otherRight, otherBottom]) =>
  Math.max(0, Math.min(right, otherRight) - Math.max(left, otherLeft)) * Math.max(0, Math.min(bottom, otherBottom) - Math.max(top, otherTop));

// For each polyp its entry of `entries` ({at, box, class, attributes}) or null: that with its pixel in the polyp; what is
// left over goes to the polyp that its box shares most with.
export function matched(polyps, entries) {
  const left = new Set(entries);
  const found = polyps.map((polyp) => {
    const entry = [...left].find(({ at }) => covers(polyp, at)) ?? null;
    left.delete(entry);
    return entry;
  });
  for (const entry of left) {
    let best = -1;
    polyps.forEach(({ box }, index) => {
      const most = best < 0 ? 0 : shared(entry.box, polyps[best].box);
      if (entry.box && !found[index] && shared(entry.box, box) > most) best = index;
    });
    if (best >= 0) found[best] = entry;
  }
  return found;
}

// The entries once one of the polyps is called otherwise; those of regions that are not there at present stay.
export function renamed(polyps, entries, index, said) {
  const known = matched(polyps, entries)[index];
  const { contour, box } = polyps[index];
  return [...entries.filter((entry) => entry !== known), { at: contour[0], box, class: said.class, attributes: said.attributes }];
}

// Gives each polyp its entry, and its words for the outline and the list.
export function describe(polyps, entries, classes) {
  matched(polyps, entries).forEach((entry, index) => Object.assign(polyps[index], { entry, label: wordsOf(entry, classes) }));
}

// As the service takes them: an entry a polyp that has one, at a pixel of its own.
export const entriesOf = (polyps, entries) =>
  matched(polyps, entries).flatMap((entry, index) =>
    entry ? [{ at: polyps[index].contour[0], class: entry.class, attributes: entry.attributes ?? {} }] : [],
  );

// In a few words; nothing where it is the first class alone.
export function wordsOf(entry, classes) {
  if (!entry) return "";
  const values = Object.values(entry.attributes ?? {}).filter(Boolean);
  return [...(entry.class !== classes[0]?.name ? [entry.class] : []), ...values].join(", ");
}
