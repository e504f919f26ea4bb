// The token of the service, asked for in a dialog.

import { $ } from "./dom.js";

export function askToken(again) {
  const dialog = $("token");
  if (again) $("token-text").textContent = "That was not it. The token was given to polypseg serve.";
  $("token-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? $("token-value").value : null), { once: true });
  });
}
