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
function shown(item, set, compared, open) {
  const known = new Set(item.references.flatMap(words));
  const pictures = element("div", "pictures");
  const views = item.image ? [picture(item.image, `Image ${item.id}`)] : [];
  if (views.length && item.maps) views.push(picture(item.image, ""));
  const notes = views.map(() => element("div", "id"));
  const mapped = views.map(() => ({}));
  views.forEach((view, i) => {
    const label = i ? `the second view of image ${item.id}` : `image ${item.id}`;
    pictures.append(element("div", "", opener(view.frame, label, () => open(mapped[i])), notes[i]));
  });
  if (notes.length) notes[0].textContent = item.id;
  const put = (i, maps, number, text) => {
    views[i].show(maps, number);
    notes[i].textContent = text;
    mapped[i] = { maps: number === undefined ? null : maps, number, text };
  };
  const look = (row) => (number) => {
    const maps = item.maps[row];
    const chosen = maps.caption.slice(...maps.words[number]);
    put(0, maps, number, [`${set.names[row]}: ${chosen}`, likely(maps.words[number])].filter(Boolean).join(", "));
    const other = compared === row ? null : item.maps[compared];
    const place = other?.words.findIndex((word) => other.caption.slice(...word).toLowerCase() === chosen.toLowerCase()) ?? -1;
    const found = place < 0 ? `does not contain ${chosen}` : chosen;
    put(1, other, place < 0 ? undefined : place, other ? `${set.names[compared]}: ${found}` : "");
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
  const asked = item.prompt ? [element("p", "prompt", item.prompt)] : [];
  if (item.count > 1) asked.unshift(element("p", "prompt", `The first of ${item.count} images, which the model sees together.`));
  const text = element("div", "", ...asked, ...item.references.map((reference) => element("p", "reference", reference)));
  text.append(element("table", "", element("tbody", "", ...rows)));
  return element("article", "example", pictures, text);
}
for (const form of document.querySelectorAll("form.browser")) {
  const number = Number(form.dataset.section);
  const set = data.examples[number];
  for (const item of set.items) item.image = set.pictures[item.image];
  const place = document.getElementById(`examples-${number}`);
  const more = document.getElementById(`more-${number}`);
  const [search, order, output, compare] = ["input", ".order", "output", ".compare"].map((tag) => form.querySelector(tag));
  const mapped = set.names.map((name, i) => [name, i]).filter(([, i]) => set.items.some((item) => item.maps?.[i]));
  if (compare) mapped.forEach(([name, i], place) => compare.add(new Option(name, i, place === 1, place === 1)));
  const text = set.items.map((item) => [item.id, item.prompt ?? "", ...item.references, ...item.captions].join(" ").toLowerCase());
  const mean = (item) => { const known = item.scores.filter((s) => s !== null); return known.reduce((a, b) => a + b, 0) / known.length; };
  const orders = {
    spread: (a, b) => b.spread - a.spread, low: (a, b) => mean(a) - mean(b), high: (a, b) => mean(b) - mean(a),
    id: (a, b) => (a.id < b.id ? -1 : 1),
  };
  const fields = [...form.querySelectorAll(".field")];
  const within = Object.fromEntries(Object.entries(set.fields).map(([field, values]) => [field,
    Object.fromEntries(Object.entries(values).map(([value, images]) => [value, new Set(images)]))]));
  let page = 0;
  let found = [];
  const render = () => {
    const wanted = search.value.toLowerCase().trim();
    found = set.items.filter((_, i) => text[i].includes(wanted)
      && fields.every((field) => !field.value || within[field.dataset.field][field.value].has(i))).sort(orders[order.value]);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const items = found.slice(page * PAGE, (page + 1) * PAGE);
    place.replaceChildren(...items.map((item, i) => shown(item, set, Number(compare?.value), (map) => open(page * PAGE + i, map))));
    if (!found.length) place.append(element("p", "", "No image is like that."));
    output.textContent = `page ${page + 1} of ${pages}, ${found.length} images`;
    more.querySelector("span").textContent = `page ${page + 1} of ${pages}`;
    more.hidden = pages === 1;
    for (const within of [form, more]) {
      within.querySelector("[data-step='-1']").disabled = page === 0;
      within.querySelector("[data-step='1']").disabled = page === pages - 1;
    }
  };
  // full size, of the images found on all pages; the focus goes to the one shown last
  const open = (first, map) => {
    const images = found.filter((item) => item.image);
    const start = images.indexOf(found[first]);
    const items = images.map((item) => ({ source: item.image, name: item.id, text: item.references.join(" | ") }));
    Object.assign(items[start], map, { text: [map.text, items[start].text].filter(Boolean).join(" | ") });
    zoom(items, start, (last) => {
      const there = found.indexOf(images[last]);
      if (page !== Math.floor(there / PAGE)) {
        page = Math.floor(there / PAGE);
        render();
      }
      if (last !== start) place.children[there % PAGE].querySelector(".open").focus();
    });
  };
  const again = () => { page = 0; render(); };
  search.addEventListener("input", again);
  for (const select of [order, ...fields]) select.addEventListener("change", again);
  compare?.addEventListener("change", render);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const step of [...form.querySelectorAll("[data-step]"), ...more.querySelectorAll("[data-step]")]) {
    step.addEventListener("click", () => {
      page += Number(step.dataset.step);
      render();
      if (more.contains(step)) form.scrollIntoView();
    });
  }
  render();
}
for (const legend of document.querySelectorAll("li.opacity")) legend.append(opacity());
