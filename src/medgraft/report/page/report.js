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
