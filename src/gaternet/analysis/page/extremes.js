// The images that most open a chosen gate, and those that most close it.

const THUMB = 44;

function showExtremes(gates) {
  const gate = state.gate;
  $("extremes").hidden = gate === null || !gates.opening;
  if ($("extremes").hidden) return;
  $("extremes-about").textContent = `${gates.gateName(gate)}: of all images those that`;
  for (const side of ["opening", "closing"]) {
    const places = gates.extremes(side, gate);
    $(side).replaceChildren(...places.map((place) => thumb(gates, place, gate)));
  }
}

/** A picture that is compared when it is clicked; of an image that is not on the page, its number. */
function thumb(gates, place, gate) {
  const image = gates.imageAt(place);
  if (image === null) return element("span", { className: "absent" }, number(place));
  const canvas = element("canvas", { "aria-hidden": "true" });
  gates.draw(sharp(canvas, THUMB, THUMB), image, 0, 0, THUMB);
  const label = short(gates.classes[gates.classOf(image)], 40);
  const told = `${gates.nameOf(image)}, ${label}: ${gates.isOpen(image, gate) ? "open" : "closed"}`;
  const button = element("button", { type: "button", title: told, "aria-label": told }, canvas);
  button.classList.toggle("closed", !gates.isOpen(image, gate));
  button.onclick = () => compare(image);
  return button;
}
