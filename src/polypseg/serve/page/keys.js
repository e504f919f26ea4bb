// Keys, and the table that tells them.

const WRITTEN = new Set(["text", "search", "number"]); // fields that one writes into
const OFF = "polypseg-keys-off";

// bindings: [{keys: ["ArrowRight"], shown: "→", what: "next", when: () => true, run}]. Keys with Ctrl are "Ctrl+z".
export function listen(bindings, table, checkbox) {
  for (const { shown, what } of bindings) {
    const row = table.insertRow();
    const cell = row.insertCell();
    shown.split(" ").forEach((name, index) => {
      const key = document.createElement("kbd");
      key.textContent = name;
      cell.append(...(index ? [" "] : []), key);
    });
    row.insertCell().textContent = what;
  }
  checkbox.checked = !localStorage.getItem(OFF);
  checkbox.addEventListener("change", () => (checkbox.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1")));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]") || isTaken(event)) return;
    const control = event.ctrlKey || event.metaKey;
    if (event.altKey || (!control && !checkbox.checked)) return;
    const name = (control ? "Ctrl+" : "") + (event.key.length === 1 ? event.key.toLowerCase() : event.key);
    const binding = bindings.find(({ keys, when }) => keys.includes(name) && when());
    if (!binding) return;
    event.preventDefault();
    binding.run(event);
  });
}

// Keys that the focused control has a use for itself.
function isTaken({ target, key, ctrlKey, metaKey }) {
  if (target.matches("input[type=password]")) return true;
  if (WRITTEN.has(target.type)) return !(ctrlKey || metaKey) || /^[zy]$/i.test(key);
  if (/^(Arrow|Home|End|Page)/.test(key)) return target.matches("input, video");
  return key === " " && !target.matches("canvas");
}
