// `zoom(items, at, closed)` shows items[at] in full size: { source, name, text, maps, number }. Escape closes and calls `closed` with
// the place of the item shown last, arrows go to other items, + and - zoom, 0 fits, 1 is the image's own size; dragging moves it.
const zoom = (() => {
  let [items, at, closed, scale, view] = [[], 0, null, 1, null];
  const [name, text, percent] = [element("strong", "", ""), element("p", "", ""), element("output", "", "")];
  const stage = element("div", "stage");
  stage.tabIndex = 0;
  stage.setAttribute("aria-label", "Image; zoom with + and -, other images with the left and right arrow");
  const fit = () => Math.min(stage.clientWidth / view.image.naturalWidth, stage.clientHeight / view.image.naturalHeight);
  const resize = (wanted, x, y) => {
    const size = [view.image.naturalWidth, view.image.naturalHeight];
    if (!size[0]) return;
    const box = stage.getBoundingClientRect();
    [x, y] = [x ?? box.left + box.width / 2, y ?? box.top + box.height / 2];
    const before = view.frame.getBoundingClientRect();
    scale = Math.min(Math.max(wanted, fit() / 2), Math.max(16, fit()));
    view.frame.style.width = `${scale * size[0]}px`;
    const after = view.frame.getBoundingClientRect();
    stage.scrollLeft += after.left + ((x - before.left) / before.width) * after.width - x;
    stage.scrollTop += after.top + ((y - before.top) / before.height) * after.height - y;
    percent.textContent = `${Math.round(100 * scale)} %`;
  };
  const show = (place) => {
    if (!items[place]) return;
    at = place;
    const item = items[at];
    view = picture(item.source, item.name);
    const shown = view;
    view.image.loading = "eager";
    view.image.addEventListener("load", () => { if (shown === view) resize(fit()); });
    view.show(item.maps, item.number);
    stage.replaceChildren(view.frame);
    [name.textContent, text.textContent] = [`${item.name} (${at + 1} of ${items.length})`, item.text ?? ""];
    [back.disabled, next.disabled] = [at === 0, at === items.length - 1];
    settings.hidden = !item.maps;
  };
  const closeDialog = () => { dialog.close(); finish(); };
  const finish = () => {
    if (dialog.open || !view) return;
    stage.replaceChildren();
    view = null;
    closed(at);
  };
  const close = button("×", "Close (Escape)", closeDialog);
  const back = button("‹", "Previous image (left arrow)", () => show(at - 1));
  const next = button("›", "Next image (right arrow)", () => show(at + 1));
  const settings = element("span", "");
  const bar = element("div", "bar", name, settings, button("−", "Smaller (-)", () => resize(scale / 1.25)), percent,
    button("+", "Larger (+)", () => resize(scale * 1.25)), button("fit", "Fit to the window (0)", () => resize(fit())),
    button("1:1", "The image's own size (1)", () => resize(1)), back, next, close);
  name.setAttribute("aria-live", "polite");
  const dialog = element("dialog", "zoom", bar, stage, text);
  dialog.setAttribute("aria-label", "Image in full size");
  const keys = { Escape: closeDialog, ArrowLeft: () => show(at - 1), ArrowRight: () => show(at + 1), 0: () => resize(fit()),
    1: () => resize(1), "+": () => resize(scale * 1.25), "=": () => resize(scale * 1.25), "-": () => resize(scale / 1.25) };
  dialog.addEventListener("keydown", (event) => {
    const slides = event.target.type === "range" && event.key.startsWith("Arrow");
    if (!keys[event.key] || slides || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    resize(scale * Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => resize(scale > 1.01 * fit() ? fit() : Math.max(1, 2 * fit()), event.clientX, event.clientY));
  stage.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") stage.setPointerCapture(event.pointerId); });
  stage.addEventListener("pointermove", (event) => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    [stage.scrollLeft, stage.scrollTop] = [stage.scrollLeft - event.movementX, stage.scrollTop - event.movementY];
  });
  addEventListener("resize", () => { if (dialog.open) resize(fit()); });
  dialog.addEventListener("close", finish); // also by a phone's gesture for back
  document.body.append(dialog);
  return (all, place, then) => {
    [items, closed] = [all, then];
    if (items.some((item) => item.maps)) settings.replaceChildren(opacity());
    dialog.showModal();
    show(place);
    stage.focus();
  };
})();

// makes a frame a button that opens it in full size
function opener(frame, label, open) {
  const made = button("", `Show ${label} in full size`, open);
  made.className = "open";
  made.append(frame);
  return made;
}
