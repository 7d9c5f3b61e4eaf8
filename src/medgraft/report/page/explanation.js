const stops = data.colours.map((colour) => `rgb(${colour.join(" ")})`).join(", ");
document.getElementById("scale").style.background = `linear-gradient(to right, ${stops})`;
for (const item of data.images) {
  const large = picture(item.image, item.name);
  const caption = element("p", "caption");
  const label = element("p", "id");
  const small = element("div", "small");
  const choose = document.createElement("select");
  item.choices.forEach((choice, i) => choose.add(new Option(choice.name, i)));
  const chosen = () => item.choices[Number(choose.value)];
  let current = 0;
  const look = (number) => {
    current = number;
    large.show(chosen(), number);
    for (const list of [caption.querySelectorAll(".word"), small.children]) {
      [...list].forEach((word, i) => word.classList.toggle("current", i === number));
    }
  };
  const draw = () => {
    const maps = chosen();
    label.textContent = maps.label;
    caption.replaceChildren(wordsOf(maps, look));
    small.replaceChildren(...maps.words.map(([start, end], number) => {
      const one = picture(item.image, "");
      one.show(maps, number);
      const button = element("button", "", one.frame, element("span", "", maps.caption.slice(start, end)));
      button.type = "button";
      for (const event of ["mouseenter", "focus", "click"]) button.addEventListener(event, () => look(number));
      return button;
    }));
    look(Math.min(current, maps.words.length - 1));
  };
  choose.addEventListener("change", draw);
  const form = element("form", "browser", element("label", "", "Map ", choose));
  form.addEventListener("submit", (event) => event.preventDefault());
  const side = element("div", "", caption, ...(item.choices.length > 1 ? [form] : []), label, small);
  const section = element("section", "explained", element("h2", "", item.name), element("div", "pair", large.frame, side));
  document.getElementById("images").append(section);
  draw();
}
