"use strict";
const root = document.documentElement, query = new URLSearchParams(location.search);
const all = (selector, container = document) => [...container.querySelectorAll(selector)];
const make = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), {textContent: text}, properties);
const system = () => matchMedia("(prefers-color-scheme:dark)").matches ? "dark" : "light";
const dark = () => (root.dataset.theme ?? system()) === "dark";
const nameTheme = () => document.getElementById("theme").textContent = dark() ? "Light theme" : "Dark theme";
const setTheme = theme => { root.dataset.theme = theme; nameTheme(); };
if (["dark", "light"].includes(query.get("theme"))) setTheme(query.get("theme"));
else nameTheme();
document.getElementById("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));

// Sorting: a row and its details are one body of the table.
const sortBy = head => {
  const first = head.dataset.first, opposite = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? opposite : first, sign = order === "ascending" ? 1 : -1;
  const table = head.closest("table"), numeric = head.classList.contains("num");
  const value = body => body.rows[0].cells[head.cellIndex].dataset.value;
  const compare = (a, b) => numeric ? a - b : a.localeCompare(b);
  const bodies = [...table.tBodies].sort((a, b) => {
    const x = value(a), y = value(b);
    return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
  });
  for (const cell of head.parentNode.cells) if (cell.hasAttribute("aria-sort")) cell.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  table.append(...bodies);
};
for (const button of all("th button")) button.addEventListener("click", () => sortBy(button.closest("th")));
for (const button of all("button.name")) button.addEventListener("click", () => {
  const details = button.closest("tbody").rows[1];
  details.hidden = !details.hidden;
  button.setAttribute("aria-expanded", String(!details.hidden));
});

// Filters and columns.
const isChecked = name => {
  const boxes = all(`input[data-filter="${name}"]`);
  return value => !boxes.length || boxes.some(box => box.checked && box.value === value);
};
const filter = () => {
  const dataset = isChecked("Dataset"), rate = isChecked("Label rate"), family = isChecked("Family"),
    column = isChecked("Columns");
  for (const board of all("section")) board.hidden = !(dataset(board.dataset.dataset) && rate(board.dataset.rate));
  for (const body of all("tbody.row")) body.hidden = !family(body.dataset.family);
  const optional = new Set(all('input[data-filter="Columns"]').map(box => box.value));
  for (const cell of all("[data-column]"))
    if (optional.has(cell.dataset.column)) cell.hidden = !column(cell.dataset.column);
};
document.querySelector(".filters").addEventListener("change", filter);

// Two rows, point by point.
const table = (heads, rows) => {
  const element = make("table", "", {className: "small"}), head = element.createTHead().insertRow(), body = element.createTBody();
  heads.forEach((text, index) => head.append(make("th", text, {className: index ? "num" : ""})));
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((text, index) => row.append(make("td", text, {className: index ? "num" : ""})));
  }
  return element;
};
const number = (value, digits = 2) =>
  value == null ? "" : value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
const signed = (a, b, digits = 2) =>
  a == null || b == null ? "" : (a > b ? "+" : a < b ? "−" : "") + number(Math.abs(a - b), digits);
const section = (title, ...content) => {
  const element = make("div"), scroll = make("div", "", {className: "scroll"});
  scroll.append(...content);
  element.append(make("h4", title), scroll);
  return element;
};
const compareRows = card => {
  const data = JSON.parse(card.querySelector("script").textContent);
  const [i, j] = all("select", card).map(select => Number(select.value)), [a, b] = [data.rows[i], data.rows[j]];
  const heads = first => [first, "first", "second", "difference"], sections = [];
  const line = (text, x, y, digits) => [text, number(x, digits), number(y, digits), signed(x, y, digits)];
  const seeds = Object.keys(a.seeds).filter(seed => seed in b.seeds);
  sections.push(section(`${data.score} by seed, %`, table(heads("seed"), ["valid", "test"].flatMap((split, index) =>
    seeds.map(seed => line(`${seed}, ${split}`, a.seeds[seed][index], b.seeds[seed][index]))))));
  const shares = data.agreement[`${Math.min(i, j)},${Math.max(i, j)}`];
  if (shares) sections.push(section("Agreement on test nodes, %", table(["", "nodes"], [
    ["same class predicted", number(shares[0])],
    ["the first alone is right", number(shares[i < j ? 1 : 2])],
    ["the second alone is right", number(shares[i < j ? 2 : 1])]])));
  const costs = Object.keys(a.costs).filter(key => a.costs[key] != null || b.costs[key] != null);
  sections.push(section("Costs", table(heads(""), costs.map(key => line(key, a.costs[key], b.costs[key], 0)))));
  const differing = Object.keys(a.settings).filter(key => a.settings[key] !== b.settings[key]);
  sections.push(section("Settings that differ", table(["setting", "first", "second"],
    differing.map(key => [key, a.settings[key], b.settings[key]]))));
  const kinds = data.kinds.filter(kind => kind[i + 2] != null && kind[j + 2] != null);
  if (kinds.length) sections.push(section("Accuracy by kind of test node, %", table(["kind", "% of nodes", ...heads("").slice(1)],
    kinds.map(kind => [kind[0], number(kind[1], 1), ...line("", kind[i + 2], kind[j + 2]).slice(1)]))));
  if (a.classes && b.classes) {
    const order = data.classes.map((_, index) => index).filter(index => data.classes[index][1]);
    order.sort((x, y) => Math.abs(a.classes[y] - b.classes[y]) - Math.abs(a.classes[x] - b.classes[x]));
    sections.push(section("Accuracy by class, %, the largest difference first", table(["class", "nodes", ...heads("").slice(1)],
      order.map(index => [data.classes[index][0], number(data.classes[index][1], 0),
        ...line("", a.classes[index], b.classes[index]).slice(1)]))));
  }
  card.querySelector(".pairs").replaceChildren(...sections);
};
const view = document.getElementById("view");
view.addEventListener("click", () => {
  const comparing = view.getAttribute("aria-pressed") !== "true";
  view.setAttribute("aria-pressed", String(comparing));
  document.body.classList.toggle("comparing", comparing);
});
for (const card of all(".compare")) {
  const selects = all("select", card), requested = (query.get("compare") ?? "1,2").split(",");
  selects.forEach((select, index) => {
    select.selectedIndex = Math.min(Number(requested[index]) - 1, select.length - 1);
    select.addEventListener("change", () => compareRows(card));
  });
  compareRows(card);
}

if (query.has("compare")) view.click();
if (query.has("open")) document.querySelector("button.name")?.click();
const sortColumn = query.get("sort");
if (sortColumn) for (const table of all("table.sortable"))
  table.querySelectorAll("th[aria-sort]")[Number(sortColumn)]?.querySelector("button").click();
