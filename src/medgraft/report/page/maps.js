"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

function button(text, label, act) {
  const made = element("button", "", text);
  made.type = "button";
  made.title = label;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

// a word's map as a small canvas with one pixel per patch, which the browser scales smoothly over the image
function mapCanvas(text, [rows, columns]) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  bytes.forEach((byte, i) => {
    const place = (byte / 255) * (data.colours.length - 1);
    const below = Math.min(Math.floor(place), data.colours.length - 2);
    const part = place - below;
    for (let c = 0; c < 4; c++) {
      pixels.data[4 * i + c] = data.colours[below][c] * (1 - part) + data.colours[below + 1][c] * part;
    }
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// an image with maps over it; `show` takes packed maps and a word's number, or nothing for the image alone
function picture(source, alt) {
  const image = new Image();
  [image.loading, image.decoding, image.alt, image.src] = ["lazy", "async", alt, source];
  const frame = element("div", "frame", image);
  const show = (maps, number) => {
    frame.querySelector("canvas")?.remove();
    if (!maps || number === undefined) return;
    const canvas = mapCanvas(maps.words[number][2], maps.shape);
    const [left, top, right, bottom] = maps.view;
    Object.assign(canvas.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`,
      height: `${100 * (bottom - top)}%` });
    frame.append(canvas);
  };
  return { frame, image, show };
}

// how opaque all maps of the page are, with what their colours stand for
function opacity() {
  const slider = document.createElement("input");
  [slider.type, slider.min, slider.max, slider.step] = ["range", 0, 100, 5];
  slider.className = "opacity";
  slider.value = Math.round(100 * data.cover);
  const shown = document.createElement("output");
  const show = () => {
    shown.textContent = `${slider.value} %`;
    document.documentElement.style.setProperty("--cover", slider.value / 100);
  };
  slider.addEventListener("input", () => {
    for (const other of document.querySelectorAll("input.opacity")) {
      if (other !== slider) [other.value, other.nextSibling.textContent] = [slider.value, `${slider.value} %`];
    }
    show();
  });
  show();
  const scale = element("span", "scale");
  const stops = data.colours.map(([red, green, blue, alpha]) => `rgb(${red} ${green} ${blue} / ${alpha / 255})`).join(", ");
  scale.style.background = `linear-gradient(to right, ${stops}), #555`;
  return element("span", "opacity", element("label", "", "Opacity of the maps ", slider, shown),
    element("span", "", "low ", scale, " high"));
}

const share = (probability) => (probability < 0.005 ? "<1 %" : `${Math.round(100 * probability)} %`);
// how likely a word was to the model; maps of earlier versions do not say
const likely = (word) => (word[3] === undefined ? "" : `probability ${share(word[3])}`);

// a caption whose words can be pointed at, or reached with Tab and the arrows; `mark` returns whether to highlight a word
function wordsOf(maps, look, mark = () => false) {
  const line = element("span", "words");
  const all = [];
  let done = 0;
  maps.words.forEach((packed, number) => {
    const [start, end] = packed;
    line.append(maps.caption.slice(done, start));
    const text = maps.caption.slice(start, end);
    const word = element("span", mark(text) ? "word odd" : "word", text);
    word.tabIndex = number ? -1 : 0;
    word.setAttribute("role", "button");
    word.title = likely(packed);
    word.setAttribute("aria-label", [text, likely(packed), mark(text) ? "in no reference" : ""].filter(Boolean).join(", "));
    for (const event of ["mouseenter", "focus", "click"]) word.addEventListener(event, () => look(number));
    word.addEventListener("keydown", (event) => {
      const next = all[number + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? NaN)];
      if (!next) return;
      event.preventDefault();
      [word.tabIndex, next.tabIndex] = [-1, 0];
      next.focus();
    });
    all.push(word);
    line.append(word);
    done = end;
  });
  line.append(maps.caption.slice(done));
  return line;
}
