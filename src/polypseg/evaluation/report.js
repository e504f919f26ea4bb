"use strict";

// A click on a column's head sorts its table, a second one the other way round, a third one puts the rows back.
const words = new Intl.Collator(undefined, { numeric: true });
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const text = (row) => row.cells[column].textContent.trim();
    const empty = (row) => Number(text(row) === "–"); // last in either order
    const compare = head.classList.contains("n")
      ? (one, other) => parseFloat(text(one)) - parseFloat(text(other))
      : (one, other) => words.compare(text(one), text(other));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = { ascending: "descending", descending: null }[head.ariaSort] ?? (head.ariaSort ? null : "ascending");
      for (const other of heads) other.removeAttribute("aria-sort");
      const rows = [...given];
      if (order) {
        const sign = order === "ascending" ? 1 : -1;
        head.ariaSort = order;
        rows.sort((one, other) => empty(one) - empty(other) || (empty(one) ? 0 : sign * compare(one, other)));
      }
      body.append(...rows);
    });
  }
}

// A click on a picture enlarges it; the arrow keys go on to the next one, Escape closes.
const pictures = [...document.querySelectorAll("img")];
const dialog = document.createElement("dialog");
const large = document.createElement("img");
const caption = document.createElement("p");
const bar = document.createElement("div");
let shown = 0;
const show = (index) => {
  shown = (index + pictures.length) % pictures.length;
  const picture = pictures[shown];
  large.src = picture.src;
  large.alt = picture.alt;
  large.className = picture.className;
  large.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
  caption.textContent = picture.closest("figure")?.querySelector("figcaption").innerText ?? picture.alt;
};
const steps = { Previous: () => show(shown - 1), Next: () => show(shown + 1), Close: () => dialog.close() };
bar.append(caption);
for (const [name, act] of Object.entries(steps)) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.addEventListener("click", act);
  bar.append(button);
}
dialog.ariaLabel = "Picture";
dialog.append(bar, large);
document.body.append(dialog);
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") steps.Previous();
  if (event.key === "ArrowRight") steps.Next();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target === large) dialog.close();
});
for (const [index, picture] of pictures.entries()) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.title = "Enlarge";
  picture.before(button);
  button.append(picture);
  button.addEventListener("click", () => {
    show(index);
    dialog.showModal();
  });
}
