// Figures of classes: how alike they are, what each opens more than others.

function similarity(gates) {
  if (gates.similarity) heatMap(gates);
  else nearest(gates);
}

function heatMap(gates) {
  const count = gates.classes.length;
  const names = gates.classes.map((name) => plain(short(name, 16)));
  $("similarity-about").textContent = ": the share of input-dependent gates that two images have alike, mean";
  const cells = names.map((_, row) => Array.from(gates.similarity.subarray(row * count, (row + 1) * count)));
  const shown = cells.map((row) => row.map((value) => (Number.isNaN(value) ? null : value)));
  const ticks = names.map((_, index) => index);
  const outline = state.chosen === null ? [] : [[-0.5, count - 0.5, state.chosen - 0.5, state.chosen + 0.5]];
  plot("fig-similarity", "Heat map: similarity of each two classes by their gates", [{
    type: "heatmap", z: shown, colorscale: "Viridis", hoverinfo: "text", xgap: 1, ygap: 1,
    text: cells.map((row, a) => row.map((value, b) => `${names[a]}, ${names[b]}: ${known(value)}`)),
    texttemplate: count <= 12 ? "%{z:.2f}" : "", textfont: { size: 11 },
    colorbar: { thickness: 12 },
  }], layout("", "", {
    xaxis: { tickvals: ticks, ticktext: names, tickangle: -40, showgrid: false },
    yaxis: { tickvals: ticks, ticktext: names, autorange: "reversed", showgrid: false },
    shapes: outline.map(([x0, x1, y0, y1]) => ({ type: "rect", x0, x1, y0, y1, line: { color: CLASS, width: 3 } })),
  }));
}

const known = (value) => (Number.isNaN(value) ? "not known" : number(value, 3));

/** How much more of each layer a class opens than the mean class, in % of the layer's gates. */
function classLayers(gates) {
  const present = gates.classes.map((_, label) => label).filter((label) => gates.classSizes[label]);
  const names = present.map((label) => plain(short(gates.classes[label], 26)));
  const open = present.map((label) => {
    const rates = gates.classRates(label);
    return layerMeans(gates, (gate) => rates[gate], 1).map((share) => 100 * share);
  });
  const mean = gates.layers.map((_, at) => open.reduce((sum, row) => sum + row[at], 0) / open.length);
  const beyond = open.map((row) => row.map((share, at) => share - mean[at]));
  const most = Math.max(1e-9, ...beyond.map((row) => Math.max(...row.map(Math.abs))));
  const told = (row, at) =>
    `${names[row]}, ${plain(gates.layers[at].name)}<br>opens ${number(open[row][at], 1)} %, the mean class ${number(mean[at], 1)} %`;
  const chosen = present.indexOf(state.chosen);
  const ticks = names.map((_, at) => at).filter((at) => at % Math.ceil(names.length / 40) === 0);
  plot("fig-class-layers", "Heat map: how much more of each layer a class opens than the mean class", [{
    type: "heatmap", z: beyond, hoverinfo: "text", zmin: -most, zmax: most,
    colorscale: [[0, "#b35806"], [0.5, "#f7f7f7"], [1, "#542788"]],
    text: beyond.map((row, at) => row.map((_, layer) => told(at, layer))),
    colorbar: { title: { text: "beyond the mean over classes [%]", side: "right" }, thickness: 12 },
  }], layout("", "", {
    xaxis: layerAxis(gates, 30),
    yaxis: { tickvals: ticks, ticktext: ticks.map((at) => names[at]), autorange: "reversed", showgrid: false },
    shapes: chosen < 0 ? [] : [{
      type: "rect", x0: -0.5, x1: gates.layers.length - 0.5, y0: chosen - 0.5, y1: chosen + 0.5,
      line: { color: CLASS, width: 3 },
    }],
  }));
}

/** Of very many classes those most like the chosen one. */
function nearest(gates) {
  const chosen = state.chosen ?? 0;
  const count = gates.nearest.length / gates.classes.length;
  const of = (array) => [...array.subarray(chosen * count, (chosen + 1) * count)];
  const row = of(gates.nearness).filter((value) => !Number.isNaN(value));
  const order = of(gates.nearest).slice(0, row.length);
  $("similarity-about").textContent = `: the ${row.length} classes most like ${short(gates.classes[chosen], 40)}`;
  plot("fig-similarity", "Bars: the classes most like the chosen one", [{
    type: "bar", orientation: "h", x: row, y: order.map((_, at) => at),
    marker: { color: "#009e73" }, hoverinfo: "text", textposition: "none",
    text: order.map((c, at) => `${plain(short(gates.classes[c], 60))}: ${number(row[at], 3)}`),
  }], layout("similarity", "", {
    yaxis: { autorange: "reversed", tickvals: order.map((_, at) => at), ticktext: order.map((c) => plain(short(gates.classes[c], 26))) },
  }));
}

/** Gates whose rate in a class is furthest from that in all other images. */
function specialGates(gates, label, most = 24) {
  const own = gates.classRates(label);
  const size = gates.classSizes[label];
  const others = gates.count - size;
  if (!own || !others) return [];
  const found = Array.from(own, (rate, gate) => {
    const elsewhere = (gates.gateCounts[gate] - rate * size) / others;
    return { gate, rate, elsewhere, apart: Math.abs(rate - elsewhere) };
  });
  return found.sort((a, b) => b.apart - a.apart || a.gate - b.gate).slice(0, most);
}

function special(gates) {
  if (state.chosen === null) {
    $("special-about").textContent = ": choose a class to see those it opens or closes most unlike the others";
    $("special").replaceChildren();
    return;
  }
  $("special-about").textContent = ` of ${short(gates.classes[state.chosen], 40)}, by the difference from all other images`;
  const columns = ["gate", "of the class", "of the others", "difference"];
  const rows = specialGates(gates, state.chosen).map(({ gate, rate, elsewhere }) => {
    const button = element("button", { type: "button", title: "Show on the map which images open it" }, gates.gateName(gate));
    button.onclick = () => {
      change({ gate });
      $("map").scrollIntoView({ block: "center" });
    };
    const away = 100 * (rate - elsewhere);
    return [button, percent(rate, 1), percent(elsewhere, 1), `${away > 0 ? "+" : "−"}${number(Math.abs(away), 1)}`];
  });
  $("special").replaceChildren(table(columns, rows));
}
