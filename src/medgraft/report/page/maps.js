"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

// a word's map as a small canvas with one pixel per patch, which the browser scales smoothly over the image
const COVER = 0.65; // opacity where the map is highest
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
    for (let c = 0; c < 3; c++) {
      pixels.data[4 * i + c] = data.colours[below][c] * (1 - part) + data.colours[below + 1][c] * part;
    }
    pixels.data[4 * i + 3] = COVER * byte;
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// an image with maps over it; `show` takes packed maps and a word's number, or nothing for the image alone
function picture(source, alt) {
  const image = new Image();
  [image.src, image.alt, image.loading] = [source, alt, "lazy"];
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
  return { frame, show };
}

// a caption whose words can be pointed at or reached by keyboard; `mark` returns whether to highlight a word
function wordsOf(maps, look, mark = () => false) {
  const line = element("span", "words");
  let done = 0;
  maps.words.forEach(([start, end], number) => {
    line.append(maps.caption.slice(done, start));
    const text = maps.caption.slice(start, end);
    const word = element("span", mark(text) ? "word odd" : "word", text);
    word.tabIndex = 0;
    for (const event of ["mouseenter", "focus"]) word.addEventListener(event, () => look(number, word));
    line.append(word);
    done = end;
  });
  line.append(maps.caption.slice(done));
  return line;
}
