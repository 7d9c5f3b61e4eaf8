document.getElementById("opacity").append(opacity());
const opened = []; // the figures of the page in order, as `zoom` takes them
const openers = [];
function figure(frame, name, item) {
  const place = opened.push(item) - 1;
  const open = opener(frame, name, () => zoom(opened, place, (last) => { if (last !== place) openers[last].focus(); }));
  openers.push(open);
  return open;
}
document.querySelectorAll(".explained").forEach((section, i) => {
  const { name, choices } = data.images[i];
  const [views, caption, label, small] = [".views", ".caption", ".label", ".small"].map((part) => section.querySelector(part));
  const source = views.querySelector("img").src;
  const large = picture(source, `${name} with the map`);
  const note = element("figcaption", "", "");
  const alone = views.querySelector(".frame");
  alone.replaceWith(figure(alone.cloneNode(true), name, { source, name, text: choices[0].caption }));
  const item = { source, name };
  views.append(element("figure", "", figure(large.frame, `the map of ${name}`, item), note));
  const choose = document.createElement("select");
  choices.forEach((choice, number) => choose.add(new Option(choice.name, number)));
  const chosen = () => choices[Number(choose.value)];
  let current = 0;
  const look = (number) => {
    current = number;
    const maps = chosen();
    const text = maps.caption.slice(...maps.words[number]);
    large.show(maps, number);
    note.textContent = `${text}, ${likely(maps.words[number])}`;
    Object.assign(item, { maps, number, text: note.textContent });
    for (const list of [caption.querySelectorAll(".word"), small.querySelectorAll("button")]) {
      [...list].forEach((word, other) => {
        word.classList.toggle("current", other === number);
        word.setAttribute("aria-pressed", other === number);
      });
    }
  };
  const draw = () => {
    const maps = chosen();
    label.textContent = maps.label;
    caption.replaceChildren(wordsOf(maps, look));
    small.replaceChildren(...maps.words.map((word, number) => {
      const one = picture(source, "");
      one.show(maps, number);
      const text = maps.caption.slice(...word);
      const made = button("", `Map of ${text}, ${likely(word)}`, () => look(number));
      const bar = element("span", "probability", element("span", "", ""));
      bar.firstChild.style.width = `${100 * word[3]}%`;
      made.append(one.frame, text, bar, element("small", "", share(word[3])));
      for (const event of ["mouseenter", "focus"]) made.addEventListener(event, () => look(number));
      return element("li", "", made);
    }));
    look(Math.min(current, maps.words.length - 1));
  };
  choose.addEventListener("change", draw);
  if (choices.length > 1) label.before(element("label", "", "Map ", choose));
  draw();
});
