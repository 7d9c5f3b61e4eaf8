// the explanation of a column: shown while its head has the focus or the pointer, hidden by Escape
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
document.body.append(tip);
const hideTip = () => { tip.hidden = true; };
function showTip(button) {
  tip.textContent = document.getElementById(button.getAttribute("aria-describedby")).textContent;
  tip.hidden = false;
  const [place, size] = [button.getBoundingClientRect(), tip.getBoundingClientRect()];
  const width = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(8, Math.min(place.left, width - size.width - 8))}px`;
  tip.style.top = `${place.bottom + 8}px`;
}
for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("focus", () => {
    button.scrollIntoView({ block: "nearest", inline: "nearest" });
    showTip(button);
  });
  button.addEventListener("mouseenter", () => showTip(button));
  button.addEventListener("blur", hideTip);
  button.addEventListener("mouseleave", () => { if (document.activeElement !== button) hideTip(); });
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", () => {
  const button = document.activeElement;
  if (!tip.hidden && button?.matches?.(".sortable thead button")) showTip(button);
  else hideTip();
}, { capture: true, passive: true });

// a table wider than the page says so, and its right edge fades while there is more
for (const frame of document.querySelectorAll(".frame-of-table")) {
  const scroll = frame.querySelector(".scroll");
  const note = frame.parentElement.querySelector(".more");
  const look = () => {
    const left = scroll.scrollWidth - scroll.clientWidth - scroll.scrollLeft;
    note.hidden = scroll.scrollWidth <= scroll.clientWidth + 1;
    frame.classList.toggle("cut", left > 1);
  };
  new ResizeObserver(look).observe(scroll);
  scroll.addEventListener("scroll", look, { passive: true });
  frame.parentElement.querySelector(".all input")?.addEventListener("change", look);
  look();
}
