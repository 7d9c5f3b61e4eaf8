// sorting: clicking a column's head reverses its order
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

// plots in the page's own colours, redrawn when those change
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

// examples, one page at a time
const PAGE = 10;
const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
function plain(text, known) {
  const span = document.createElement("span");
  for (const part of text.split(/([\p{L}\p{N}]+)/u)) {
    const odd = /[\p{L}\p{N}]/u.test(part) && !known.has(part.toLowerCase());
    span.append(odd ? element("mark", "", part) : part);
  }
  return span;
}
// shows the map of the word under the pointer, and beside it the map of the same word of the strategy to compare with
function shown(item, set, compared) {
  const known = new Set(item.references.flatMap(words));
  const pictures = element("div", "pictures");
  const views = item.image ? [picture(item.image, `Image ${item.id}`)] : [];
  if (views.length && item.maps) views.push(picture(item.image, ""));
  const notes = views.map(() => element("div", "id"));
  views.forEach((view, i) => pictures.append(element("div", "", view.frame, notes[i])));
  if (notes.length) notes[0].textContent = item.id;
  const look = (row) => (number) => {
    const maps = item.maps[row];
    const chosen = maps.caption.slice(...maps.words[number]);
    views[0].show(maps, number);
    notes[0].textContent = `${set.names[row]}: ${chosen}`;
    const other = compared === row ? null : item.maps[compared];
    const place = other?.words.findIndex((word) => other.caption.slice(...word).toLowerCase() === chosen.toLowerCase()) ?? -1;
    views[1].show(other, place < 0 ? undefined : place);
    notes[1].textContent = other ? `${set.names[compared]}: ${place < 0 ? `does not contain ${chosen}` : chosen}` : "";
  };
  const rows = set.names.map((name, i) => {
    const head = element("th", "", name);
    head.scope = "row";
    const score = item.scores[i] === null ? "" : item.scores[i].toFixed(2);
    const maps = item.maps?.[i];
    const text = maps && views.length ? wordsOf(maps, look(i), (word) => words(word).some((part) => !known.has(part)))
      : plain(item.captions[i], known);
    return element("tr", "", head, element("td", "", text), element("td", "n", score));
  });
  if (!views.length) pictures.append(element("div", "id", item.id));
  const text = element("div", "", ...item.references.map((reference) => element("p", "reference", reference)));
  text.append(element("table", "", element("tbody", "", ...rows)));
  return element("article", "example", pictures, text);
}
for (const form of document.querySelectorAll(".browser")) {
  const number = Number(form.dataset.section);
  const set = data.examples[number];
  const place = document.getElementById(`examples-${number}`);
  const [search, order, output, compare] = ["input", ".order", "output", ".compare"].map((tag) => form.querySelector(tag));
  if (compare) set.names.forEach((name, i) => compare.add(new Option(name, i, i === 1, i === 1)));
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
    place.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((item) => shown(item, set, Number(compare?.value))));
    output.textContent = `page ${page + 1} of ${pages}, ${found.length} images`;
    form.querySelector("[data-step='-1']").disabled = page === 0;
    form.querySelector("[data-step='1']").disabled = page === pages - 1;
  };
  search.addEventListener("input", () => { page = 0; render(); });
  order.addEventListener("change", () => { page = 0; render(); });
  compare?.addEventListener("change", render);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of form.querySelectorAll("button")) {
    button.addEventListener("click", () => { page += Number(button.dataset.step); render(); });
  }
  render();
}
