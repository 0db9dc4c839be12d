// The page: what was chosen goes to the map, the strips and the figures.

class Tip {
  constructor(gates) {
    this.gates = gates;
    this.box = $("tip");
  }

  hide() {
    this.box.hidden = true;
  }

  _show(children, x, y) {
    this.box.replaceChildren(...children);
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + 16 + width < window.innerWidth ? x + 16 : x - 12 - width;
    const top = Math.min(y + 12, window.innerHeight - height - 6);
    this.box.style.left = `${Math.max(4, left)}px`;
    this.box.style.top = `${Math.max(4, top)}px`;
  }

  image(image, x, y) {
    const canvas = document.createElement("canvas");
    this.gates.draw(sharp(canvas, 96, 96), image, 0, 0, 96);
    this._show([canvas, ...words(this.gates, image)], x, y);
  }

  layer({ name, gates, on, off, from, to }, x, y) {
    const told = `${gates} gates: ${on} always on, ${to - from} input-dependent, ${off} always off`;
    const rest = this.gates.labels ? [element("div", {}, told)] : [];
    this._show([element("b", {}, name), ...rest], x, y);
  }

  gate(gate, x, y) {
    const { gates } = this;
    const lines = [element("b", {}, gates.gateName(gate))];
    state.pair.forEach((image, slot) => {
      if (image === null) return;
      const label = gates.classOf(image);
      const rates = gates.classRates(label);
      const often = rates
        ? `; ${short(gates.classes[label], 30)} opens it for ${percent(rates[gate], 1)}` : "";
      const open = gates.isOpen(image, gate) ? "open" : "closed";
      lines.push(element("div", {}, `${"AB"[slot]}: ${open}${often}`));
    });
    if (gates.labels) lines.push(element("div", {}, `all images: open for ${percent(gates.rate(gate), 1)}`));
    this._show(lines, x, y);
  }
}

/** What is said of an image: its name, class, what it was taken for, its open gates. */
function words(gates, image) {
  const { classes, labels, predictions, confidences } = gates;
  const sure = confidences ? ` (${percent(confidences[image])})` : "";
  const taken = short(classes[predictions[image]], 60) + sure;
  const name = element("p", { className: "name", title: gates.nameOf(image) }, gates.nameOf(image));
  const open = element("p", { className: "caption" },
    `${number(gates.openCounts[image])} of ${number(gates.gates)} open`);
  if (!labels) return [name, element("p", {}, element("b", {}, taken)), open];
  const verdict = gates.isWrong(image)
    ? element("p", {}, element("span", { className: "wrong-word" }, "✗ taken for "), taken)
    : element("p", { className: "caption" }, `✓ right${sure}`);
  return [name, element("p", {}, element("b", {}, short(classes[labels[image]], 60))), verdict, open];
}

function fillHeader(gates) {
  $("title").textContent = gates.title;
  let wrong = 0;
  for (let image = 0; image < gates.count; image++) wrong += gates.isWrong(image);
  const images = gates.drawnFrom
    ? `${number(gates.count)} of ${number(gates.drawnFrom)} images, drawn at random`
    : `${number(gates.count)} ${gates.count === 1 ? "image" : "images"}`;
  const facts = gates.labels
    ? [images, `${number(gates.classes.length)} classes`,
      `${number(gates.width)} of ${number(gates.gates)} gates depend on the input`,
      `${percent(wrong / gates.count, 2)} ${gates.drawnFrom ? "of these " : ""}wrongly classified`]
    : [images, `${number(gates.gates)} gates`,
      gates.ratesOf ? `means of classes over ${gates.ratesOf}` : "no class means to compare with: run gaternet analyze first"];
  $("facts").textContent = facts.join(" · ");
  if (gates.labels && !gates.width) {
    $("nothing").hidden = false;
    $("nothing").textContent =
      "No gate depends on the input: each is open for all of these images, or for none. There is nothing to compare between images.";
  }
  const needs = {
    statistics: gates.labels, tables: gates.tables.length,
    similarity: (gates.similarity || gates.nearest) && gates.classes.length > 1,
    mutualInformation: gates.mutualInformation && gates.width,
    comparisons: gates.bars.length || gates.splitRates, swaps: gates.bars.length, agreement: gates.splitRates,
  };
  for (const part of document.querySelectorAll("[data-needs]")) part.hidden = !needs[part.dataset.needs];
  $("nav").hidden = !gates.labels && !gates.tables.length;
  $("wrong-box").hidden = !wrong;
}

function fillClasses(gates) {
  const select = $("class");
  select.append(element("option", { value: "" }, "all"));
  gates.classes.forEach((name, label) => {
    select.append(element("option", { value: label }, short(name, 60)));
  });
  select.onchange = () => change({ chosen: select.value === "" ? null : Number(select.value) });
  if (!gates.labels) return;
  $("all").onclick = () => change({ chosen: null, gate: null, wrongOnly: false });
  if (gates.classes.length > 20) return;
  gates.classes.forEach((name, label) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    const context = sharp(canvas, 14, 14);
    paintMark(context, look(label).mark, 7, 7, 5);
    context.fillStyle = look(label).colour;
    context.fill();
    const button = element("button", { type: "button", title: name }, canvas, element("span", {}, name));
    button.onclick = () => change({ chosen: state.chosen === label ? null : label });
    $("legend").append(button);
  });
}

/** The heads over the strips: picture, words, and which image it is. */
function fillHeads(gates) {
  state.pair.forEach((_, slot) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    const field = element("input", {
      type: "number", min: gates.numberOf(0), max: gates.numberOf(gates.count - 1), "aria-label": `Number of image ${"AB"[slot]}`,
    });
    field.onchange = () => {
      const image = gates.nearestTo(Math.round(Number(field.value)) || 0);
      field.value = gates.numberOf(image);
      change({ active: slot });
      compare(image);
    };
    const pick = element("button", { type: "button", "aria-label": `The map moves image ${"AB"[slot]}` });
    pick.onclick = () => change({ active: slot });
    const line = element("div", { className: "line" }, pick, field);
    const told = element("div", { className: "said" });
    const head = element("div", { className: "head" }, canvas,
      element("div", { className: "words" }, line, told));
    Object.assign(head, { canvas, field, pick, told });
    $("heads").append(head);
  });
}

function showHeads(gates) {
  [...$("heads").children].forEach((head, slot) => {
    const image = state.pair[slot];
    const active = state.active === slot;
    head.pick.replaceChildren("AB"[slot], element("span", { className: "dot" }, active ? " ●" : " ○"));
    head.pick.setAttribute("aria-pressed", active);
    head.hidden = gates.count === 1 && slot === 1;
    const context = sharp(head.canvas, 96, 96);
    head.field.value = image === null ? "" : gates.numberOf(image);
    if (image === null) {
      head.told.replaceChildren(element("p", { className: "caption" }, "Shift-click an image to compare."));
      return;
    }
    gates.draw(context, image, 0, 0, 96);
    head.told.replaceChildren(...words(gates, image));
  });
}

/** How far an image of a class is from the class's mean, usually: Σ 2 p (1 − p). */
function usual(rates) {
  let sum = 0;
  for (const rate of rates) sum += 2 * rate * (1 - rate);
  return sum;
}

function showPairAbout(gates) {
  const [one, other] = state.pair;
  const told = [];
  if (one !== null && other !== null) {
    told.push(`A and B differ in ${number(gates.differing(one, other))} of ${number(gates.width)} ${gates.labels ? "input-dependent " : ""}gates.`);
  }
  state.pair.forEach((image, slot) => {
    const rates = image === null ? null : gates.classRates(gates.classOf(image));
    if (!rates) return;
    const away = number(gates.distance(image, rates), 1);
    told.push(`${"AB"[slot]} is Δ ${away} gates from the mean of ${short(gates.classes[gates.classOf(image)])} (usually ${number(usual(rates), 1)}).`);
  });
  $("pair-about").textContent = told.join(" ");
  $("strips").setAttribute("aria-label", told.join(" ") || "Gates layer by layer");
  $("key-mean").hidden = !state.pair.some((image) => image !== null && gates.classRates(gates.classOf(image)));
}

function showNumbers(gates) {
  if (!$("numbers").open) return;
  const columns = ["layer", "filters"];
  const slots = [0, 1].filter((slot) => state.pair[slot] !== null);
  for (const slot of slots) columns.push(`${"AB"[slot]} opens`, `mean of ${"AB"[slot]}'s class`, `${"AB"[slot]} Δ mean`);
  if (slots.length === 2) columns.push("A ≠ B");
  const means = state.pair.map((image) => (image === null ? null : gates.classRates(gates.classOf(image))));
  const rows = gates.layers.map((layer) => {
    const row = [layer.name, number(layer.gates)];
    for (const slot of slots) {
      const rates = means[slot];
      let mean = layer.on;
      for (let gate = layer.from; rates && gate < layer.to; gate++) mean += rates[gate];
      row.push(number(gates.openIn(state.pair[slot], layer)), rates ? number(mean, 2) : "",
        rates ? number(gates.distance(state.pair[slot], rates, layer.from, layer.to), 2) : "");
    }
    if (slots.length === 2) row.push(number(gates.differing(...state.pair, layer.from, layer.to)));
    return row;
  });
  $("numbers-box").replaceChildren(table(columns, rows));
}

function showChoice(gates) {
  $("class").value = state.chosen ?? "";
  $("wrong").checked = state.wrongOnly;
  $("all").disabled = state.chosen === null && state.gate === null && !state.wrongOnly;
  [...$("legend").children].forEach((button, label) => {
    button.setAttribute("aria-pressed", state.chosen === label);
  });
  $("no-gate").hidden = state.gate === null;
  $("no-gate").textContent = state.gate === null ? "" : `✕ ${gates.gateName(state.gate)}`;
  $("no-gate").setAttribute("aria-label", "Show classes again, not which images open this gate");
  let left = 0;
  for (let image = 0; image < gates.count; image++) left += isLeft(gates, image);
  const place = gates.embedding ? "Images that open like gates lie near each other" : "Images in order of their class";
  const about = state.gate !== null
    ? `Filled: open, hollow or dashed: closed; ${gates.gateName(state.gate)}`
    : `${gates.labels ? place : "Choose two images to compare"}.`;
  $("map-about").textContent = about;
  $("map").setAttribute("aria-label", about);
  $("left").textContent = left < gates.count ? `${number(left)} of ${number(gates.count)} images` : "";
}

function fillTables(gates) {
  for (const { title, about, columns, rows } of gates.tables) {
    $("tables-box").append(element("div", {},
      element("div", { className: "caption" }, element("b", {}, title), about ? `: ${about}` : ""),
      table(columns, rows)));
  }
}

/** The second image at first: one of another class, where there is one. */
function firstOther(gates) {
  for (let image = 1; image < gates.count; image++) {
    if (gates.classOf(image) !== gates.classOf(0)) return image;
  }
  return gates.count > 1 ? 1 : null;
}

async function start() {
  const header = JSON.parse($("header").textContent);
  const gates = new Gates(header, await readArrays(header.arrays), await readPictures());
  state.pair = [0, firstOther(gates)];
  fillHeader(gates);
  fillClasses(gates);
  fillHeads(gates);
  fillTables(gates);
  const tip = new Tip(gates);
  const map = new ImageMap(gates, tip);
  const strips = new Strips(gates, tip);
  listeners.push((changed) => {
    showChoice(gates);
    showHeads(gates);
    showPairAbout(gates);
    showNumbers(gates);
    showExtremes(gates);
    map.marks.clear();
    map.paint();
    strips.paint();
  });
  $("wrong").onchange = () => change({ wrongOnly: $("wrong").checked });
  $("no-gate").onclick = () => change({ gate: null });
  $("numbers").ontoggle = () => showNumbers(gates);
  for (const radio of document.getElementsByName("unit")) radio.onchange = () => change({ unit: radio.value });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hide(); });
  const first = new Set(["start"]);
  for (const listener of listeners) listener(first);
  if (gates.labels) {
    await new Promise((done) => { setTimeout(done); }); // what is above the figures is seen first
    listeners.push((changed) => drawCharts(gates, changed));
    drawCharts(gates, first);
  }
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  $("nothing").hidden = false;
  $("nothing").textContent = `This page cannot be shown by this browser: ${error.message}`;
  throw error;
});
