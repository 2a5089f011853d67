"use strict";
// Sliders: the invisible range input is the control, so that mouse, touch and keyboard all work; the picture follows it.
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input");
  const follow = () => {
    slider.style.setProperty("--x", input.value + "%");
    input.setAttribute("aria-valuetext", input.value + " % before, " + (100 - input.value) + " % after");
  };
  input.addEventListener("input", follow);
  follow();
}

// The table of pictures sorts by the column whose heading is pressed; a second press turns the order round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      const order = x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return descending ? -order : order;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  });
}
