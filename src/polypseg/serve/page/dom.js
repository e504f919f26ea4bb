// Small helpers around the document.

export const $ = (id) => document.getElementById(id);

export function on(id, type, run) {
  $(id).addEventListener(type, run);
}

// In the line above the list.
export function tell(text, wrong = false) {
  $("notice").textContent = text;
  $("notice").classList.toggle("wrong", wrong);
}

// To screen readers.
export function announce(text) {
  $("live").textContent = text;
}

export const number = (value) => value.toLocaleString("en").replaceAll(",", "\u202f"); // thin spaces
export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
export const counted = (count, what = "polyp", none = "no") => `${count || none} ${what}${count > 1 ? "s" : ""}`;
export const bytes = (count) => (count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(1)} GB`);

// Minutes and seconds, with tenths.
export const clock = (seconds) => {
  const tenths = Math.floor(10 * seconds + 1e-6);
  const whole = Math.floor(tenths / 10);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = `${String(whole % 60).padStart(2, "0")}.${tenths % 10}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
};
