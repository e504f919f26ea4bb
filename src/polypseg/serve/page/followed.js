// What a video was followed at, in words. No document in here.

// Whether two operating points differ in what the page's sliders move.
export const differ = (one, other) => one.threshold !== other.threshold || one.min_confidence !== other.min_confidence;

// own: another point; where the confidence is that one's, it is not told.
export function words({ threshold, min_confidence: confidence }, own) {
  const told = own?.min_confidence === confidence ? "" : `, confidence ${confidence.toFixed(3)}`;
  return `threshold ${threshold.toFixed(2)}${told}`;
}

// Of a video in the list, where there is little room. own: the model's operating point.
export function filmWords(point, own) {
  if (!own || !differ(point, own)) return "video, done";
  const told = own.min_confidence === point.min_confidence ? "" : `, ${point.min_confidence.toFixed(3)}`;
  return `followed at ${point.threshold.toFixed(2)}${told}`;
}
