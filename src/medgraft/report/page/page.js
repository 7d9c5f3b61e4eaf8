"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// sorting: a column's head turns its order round
for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const table = head.closest("table");
    const column = [...head.parentElement.children].indexOf(head);
    const descending = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.children[column];
      return "value" in cell.dataset ? (cell.dataset.value === "" ? -Infinity : Number(cell.dataset.value)) : cell.textContent;
    };
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1);
    });
    body.append(...rows);
  });
}

// plots, in the page's own colours, drawn anew when those change
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  const config = { background: "transparent", view: { stroke: line }, axis, legend: { labelColor: ink, titleColor: ink },
    text: { color: ink }, font: "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" };
  for (const [id, spec] of Object.entries(data.charts)) {
    const place = document.getElementById(id);
    if (place) vegaEmbed(place, { ...spec, config: { ...spec.config, ...config } }, { actions: false, renderer: "svg" });
  }
}
draw();
dark.addEventListener("change", draw);

// examples, a page at a time
const PAGE = 10;
const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
function caption(text, known) {
  const span = document.createElement("span");
  for (const part of text.split(/([\p{L}\p{N}]+)/u)) {
    const odd = /[\p{L}\p{N}]/u.test(part) && !known.has(part.toLowerCase());
    const node = odd ? document.createElement("mark") : document.createTextNode(part);
    if (odd) node.textContent = part;
    span.append(node);
  }
  return span;
}
function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}
function shown(item, set) {
  const known = new Set(item.references.flatMap(words));
  const rows = set.names.map((name, i) => {
    const head = element("th", "", name);
    head.scope = "row";
    const score = item.scores[i] === null ? "" : item.scores[i].toFixed(2);
    return element("tr", "", head, element("td", "", caption(item.captions[i], known)), element("td", "n", score));
  });
  const picture = element("div");
  if (item.image) {
    const image = new Image();
    image.src = item.image;
    image.alt = `Image ${item.id}`;
    image.loading = "lazy";
    picture.append(image);
  }
  picture.append(element("div", "id", item.id));
  const text = element("div", "", ...item.references.map((reference) => element("p", "reference", reference)));
  text.append(element("table", "", element("tbody", "", ...rows)));
  return element("article", "example", picture, text);
}
for (const form of document.querySelectorAll(".browser")) {
  const number = Number(form.dataset.section);
  const set = data.examples[number];
  const place = document.getElementById(`examples-${number}`);
  const [search, order, output] = ["input", "select", "output"].map((tag) => form.querySelector(tag));
  const text = set.items.map((item) => [item.id, ...item.references, ...item.captions].join(" ").toLowerCase());
  const mean = (item) => { const known = item.scores.filter((s) => s !== null); return known.reduce((a, b) => a + b, 0) / known.length; };
  const orders = {
    spread: (a, b) => b.spread - a.spread, low: (a, b) => mean(a) - mean(b), high: (a, b) => mean(b) - mean(a),
    id: (a, b) => (a.id < b.id ? -1 : 1),
  };
  let page = 0;
  const render = () => {
    const wanted = search.value.toLowerCase().trim();
    const found = set.items.filter((_, i) => text[i].includes(wanted)).sort(orders[order.value]);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    place.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((item) => shown(item, set)));
    output.textContent = `page ${page + 1} of ${pages}, ${found.length} images`;
    form.querySelector("[data-step='-1']").disabled = page === 0;
    form.querySelector("[data-step='1']").disabled = page === pages - 1;
  };
  search.addEventListener("input", () => { page = 0; render(); });
  order.addEventListener("change", () => { page = 0; render(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of form.querySelectorAll("button")) {
    button.addEventListener("click", () => { page += Number(button.dataset.step); render(); });
  }
  render();
}
