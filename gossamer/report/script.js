const tip = document.getElementById("tip");
function show(mark) {
  const [name, ...rest] = mark.dataset.tip.split("\n");
  const title = document.createElement("b");
  title.textContent = name;
  tip.replaceChildren(title, ...rest.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
  tip.className = "on";
  const at = mark.getBoundingClientRect();
  const x = at.left + at.width / 2 - tip.offsetWidth / 2;
  const above = at.top - tip.offsetHeight - 6;
  tip.style.left = Math.max(8, Math.min(x, document.documentElement.clientWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (above > 8 ? above : at.bottom + 6) + "px";
}
const hide = () => { tip.className = ""; };
for (const mark of document.querySelectorAll("[data-tip]")) {
  mark.addEventListener("pointerenter", () => show(mark));
  mark.addEventListener("focus", () => show(mark));
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("blur", hide);
}
addEventListener("scroll", hide, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
