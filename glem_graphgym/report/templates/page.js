"use strict";
const root = document.documentElement, query = new URLSearchParams(location.search);
const system = () => matchMedia("(prefers-color-scheme:dark)").matches ? "dark" : "light";
const dark = () => (root.dataset.theme ?? system()) === "dark";
const setTheme = theme => {
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = dark() ? "Light theme" : "Dark theme";
};
if (["dark", "light"].includes(query.get("theme"))) setTheme(query.get("theme"));
else document.getElementById("theme").textContent = dark() ? "Light theme" : "Dark theme";
document.getElementById("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
const sortBy = head => {
  const first = head.dataset.first, other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first, sign = order === "ascending" ? 1 : -1;
  const table = head.closest("table"), body = table.tBodies[0], numeric = head.classList.contains("num");
  const value = row => row.cells[head.cellIndex].dataset.value;
  const compare = (a, b) => numeric ? a - b : a.localeCompare(b);
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
  });
  for (const cell of head.parentNode.cells) if (cell.hasAttribute("aria-sort")) cell.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  body.append(...rows);
};
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sortBy(button.closest("th")));
const wanted = query.get("sort");
if (wanted) for (const table of document.querySelectorAll("table.sortable"))
  table.querySelector(`th:nth-child(${Number(wanted) + 1}) button`)?.click();
