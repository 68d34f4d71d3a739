// Long tables sort by a column when its heading is chosen; without this script they are the same tables as they stand.
"use strict";
const number = text => { const found = text.replaceAll(",", "").match(/^[+-]?\d+(\.\d+)?/); return found ? parseFloat(found[0]) : NaN; };
for (const table of document.querySelectorAll("details table")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falling = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const text = row => row.cells[column].innerText;
      const order = (a, b) => (number(text(a)) - number(text(b))) || text(a).localeCompare(text(b));
      body.append(...[...body.rows].sort((a, b) => falling ? order(b, a) : order(a, b)));
    });
  });
}
