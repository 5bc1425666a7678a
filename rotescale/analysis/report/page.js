"use strict";
// A click on a heading sorts its table by that column; again, the other way round.
function value(cell) {
  const key = cell.dataset.sort;
  return key === undefined ? cell.textContent.trim() : key === "" ? null : Number(key);
}
function compare(one, two, direction) {
  if (one === null || two === null) return (one === null) - (two === null);
  const order = typeof one === "number" && typeof two === "number"
    ? one - two : String(one).localeCompare(String(two), "en", { numeric: true });
  return direction * order;
}
document.querySelectorAll("th button").forEach((button) => {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const column = heading.cellIndex;
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    heading.parentElement.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = heading.closest("table").tBodies[0];
    const keyed = Array.from(body.rows, (row) => [value(row.cells[column]), row]);
    keyed.sort((one, two) => compare(one[0], two[0], ascending ? 1 : -1));
    body.append(...keyed.map((pair) => pair[1]));
  });
});
