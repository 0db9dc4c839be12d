// Figures over all images, drawn by Plotly, and what a chosen class adds to them.

const KINDS = [
  ["always on", "#0072b2", "", (layer) => layer.on],
  ["input-dependent", "#e69f00", "/", (layer) => layer.to - layer.from],
  ["always off", "#bbbbbb", "", (layer) => layer.off],
];
const ALL = "#5a6675";
const CLASS = "#d55e00";
const MOST_MARKS = 4000;

function layout(x, y, more = {}) {
  const axis = (title, extra) => ({
    title: { text: title, font: { size: 12 } }, automargin: true, zeroline: false,
    gridcolor: "#e4e8ee", linecolor: "#9aa5b1", ticks: "outside", ticklen: 3, ...extra,
  });
  const { xaxis, yaxis, ...rest } = more;
  return {
    font: { family: "system-ui, Segoe UI, Roboto, sans-serif", size: 12, color: "#1c2430" },
    margin: { l: 54, r: 12, t: 26, b: 44 },
    paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
    hoverlabel: { bgcolor: "#fff", bordercolor: "#9aa5b1", font: { color: "#1c2430" }, align: "left" },
    bargap: 0.12, xaxis: axis(x, xaxis), yaxis: axis(y, yaxis), ...rest,
  };
}

function plot(id, told, traces, described) {
  $(id).setAttribute("aria-label", told);
  Plotly.react($(id), traces, described, {
    displaylogo: false, responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  });
}

/** Layers on an axis: all of them as numbers, with as many names as there is room for. */
function layerAxis(gates, room) {
  const { layers } = gates;
  const step = Math.max(1, Math.ceil(layers.length / room));
  const ticks = layers.map((_, index) => index).filter((index) => index % step === 0);
  return {
    tickvals: ticks, range: [-0.6, layers.length - 0.4], showgrid: false, tickfont: { size: 10 },
    ticktext: ticks.map((index) => plain(shortEnd(layers[index].name, 18))),
    tickangle: layers.length > 4 ? -40 : 0,
  };
}

const className = (gates, most = 30) => plain(short(gates.classes[state.chosen], most));

function kinds(gates) {
  const { layers } = gates;
  const share = state.unit === "share";
  const traces = KINDS.map(([name, colour, shape, count]) => ({
    type: "bar", name, x: layers.map((_, index) => index),
    y: layers.map((layer) => (share ? (100 * count(layer)) / layer.gates : count(layer))),
    marker: { color: colour, pattern: { shape, bgcolor: colour, fgcolor: "#fff", size: 6, solidity: 0.25 } },
    hoverinfo: "text", textposition: "none",
    text: layers.map((layer) =>
      `${plain(layer.name)}<br>${count(layer)} of ${layer.gates} ${name} (${percent(count(layer) / layer.gates)})`),
  }));
  plot("fig-kinds", "Stacked bars: kinds of gates in each layer", traces,
    layout("", share ? "share of the layer's gates [%]" : "gates",
      { barmode: "stack", xaxis: layerAxis(gates, 30), yaxis: share ? { range: [0, 100] } : {} }));
}

/** Mean over a layer of something of its gates; always open ones count `on`, closed ones 0. */
function layerMeans(gates, value, on) {
  return gates.layers.map((layer) => {
    let sum = on * layer.on;
    for (let gate = layer.from; gate < layer.to; gate++) sum += value(gate);
    return sum / layer.gates;
  });
}

function layers(gates) {
  const line = (name, values, colour, symbol, dash) => ({
    type: "scatter", mode: "lines+markers", name, x: gates.layers.map((_, index) => index),
    y: values.map((v) => 100 * v), line: { color: colour, dash }, marker: { symbol, size: 7 },
    hoverinfo: "text",
    text: values.map((v, index) => `${plain(gates.layers[index].name)}<br>${name}: ${percent(v, 1)} open`),
  });
  const all = layerMeans(gates, (gate) => gates.rate(gate), 1);
  const traces = [line("all images", all, ALL, "circle", "dot")];
  const rates = state.chosen === null ? null : gates.classRates(state.chosen);
  if (rates) {
    const own = layerMeans(gates, (gate) => rates[gate], 1);
    traces.push(line(className(gates), own, CLASS, "diamond", "solid"));
  }
  plot("fig-layers", "Lines: share of open filters in each layer", traces,
    layout("", "open filters [%]", { xaxis: layerAxis(gates, 16), yaxis: { rangemode: "tozero" }, showlegend: true }));
}

function entropy(gates) {
  const bits = (rate) =>
    rate <= 0 || rate >= 1 ? 0 : -rate * Math.log2(rate) - (1 - rate) * Math.log2(1 - rate);
  const values = layerMeans(gates, (gate) => bits(gates.rate(gate)), 0);
  plot("fig-entropy", "Bars: mean entropy of the gates in each layer", [{
    type: "bar", x: gates.layers.map((_, index) => index), y: values, marker: { color: "#009e73" },
    hoverinfo: "text", textposition: "none",
    text: values.map((v, index) => `${plain(gates.layers[index].name)}<br>${number(v, 3)} bit`),
  }], layout("", "entropy [bit]", { xaxis: layerAxis(gates, 16), yaxis: { rangemode: "tozero" } }));
}

/** Count values in equal steps from low to high; high belongs to the last. */
function histogram(values, low, high, steps) {
  const counts = new Array(steps).fill(0);
  for (const value of values) {
    // Multiplied first: of whole numbers at the edge of a step the quotient is exact.
    counts[Math.min(steps - 1, Math.floor(((value - low) * steps) / (high - low)))]++;
  }
  return { counts, middles: counts.map((_, at) => low + ((at + 0.5) * (high - low)) / steps) };
}

function rates(gates) {
  const steps = 50;
  const told = (name, opened, images) => {
    const { counts } = histogram(opened, 0, images, steps);
    return { name, x: counts.map((_, at) => 2 * at + 1), y: counts, hoverinfo: "text",
      text: counts.map((n, at) => `${number(n)} gates open for ${2 * at}–${2 * at + 2} %<br>of ${name}`) };
  };
  const traces = [{
    ...told("all images", gates.gateCounts, gates.count), type: "bar", textposition: "none",
    marker: { color: "#56b4e9" },
  }];
  const own = state.chosen === null ? null : gates.countsOf(state.chosen);
  if (own) {
    traces.push({
      ...told(className(gates), own, gates.classSizes[state.chosen]), type: "scatter", mode: "lines",
      line: { color: CLASS, shape: "hvh", width: 2 },
    });
  }
  let active = 0;
  for (let gate = 0; gate < gates.width; gate++) active += gates.rate(gate) >= 0.01 && gates.rate(gate) <= 0.99;
  const often = `${number(active)} of ${number(gates.width)} open for 1–99 % of the images`;
  plot("fig-rates", `Histogram: ${often}`, traces, layout("open for … % of the images", "gates", {
    bargap: 0.04, xaxis: { range: [0, 100] }, showlegend: true,
  }));
  $("rates-about").textContent = `: ${often}`;
}

function moments(values) {
  let [low, high, sum, squares] = [Infinity, -Infinity, 0, 0];
  for (const value of values) {
    [low, high, sum] = [Math.min(low, value), Math.max(high, value), sum + value];
  }
  const mean = sum / values.length;
  for (const value of values) squares += (value - mean) ** 2;
  return { low, high, mean, deviation: Math.sqrt(squares / values.length) };
}

function openGates(gates) {
  const { low, high, mean, deviation } = moments(gates.openCounts);
  const wide = Math.max(1, Math.ceil((high - low + 1) / 60)); // gates a bar
  const steps = Math.ceil((high - low + 1) / wide);
  const end = low + steps * wide;
  const { counts, middles } = histogram(gates.openCounts, low, end, steps);
  const x = middles.map((v) => v - 0.5);
  const range = (at) => (wide === 1 ? number(low + at) : `${number(low + at * wide)}–${number(low + (at + 1) * wide - 1)}`);
  const traces = [{
    type: "bar", name: "all images", x, y: counts, marker: { color: "#56b4e9" }, hoverinfo: "text",
    textposition: "none", text: counts.map((n, at) => `${number(n)} images open ${range(at)} gates`),
  }];
  const own = [...gates.openCounts].filter((_, image) => gates.classOf(image) === state.chosen);
  if (own.length) {
    const scale = gates.count / own.length;
    traces.push({
      type: "scatter", mode: "lines", name: `${className(gates)}, scaled to all`, x,
      y: histogram(own, low, end, steps).counts.map((n) => n * scale), hoverinfo: "skip",
      line: { color: CLASS, shape: "hvh", width: 2 },
    });
  }
  if (deviation > 0) {
    const fine = Array.from({ length: 121 }, (_, at) => low - 0.5 + (at / 120) * (end - low));
    const density = (v) => Math.exp(-0.5 * ((v - mean) / deviation) ** 2) / (deviation * Math.sqrt(2 * Math.PI));
    traces.push({
      type: "scatter", mode: "lines", name: "normal", x: fine, hoverinfo: "skip",
      y: fine.map((v) => gates.count * wide * density(v)), line: { color: "#000", dash: "dash", width: 1.5 },
    });
  }
  const told = `${number(low)} least, ${number(mean, 1)} mean, ${number(high)} most of ${number(gates.gates)}`;
  plot("fig-open", `Histogram of open gates: ${told}`, traces, layout("open gates", "images", {
    bargap: 0.04, showlegend: true,
  }));
  $("open-about").textContent = `: ${told}`;
}

function information(gates) {
  const all = Array.from({ length: gates.width }, (_, gate) => gate);
  all.sort((a, b) => gates.mutualInformation[b] - gates.mutualInformation[a]);
  const drawn = all.slice(0, MOST_MARKS);
  $("mi-about").textContent = drawn.length < all.length
    ? `(the ${number(drawn.length)} gates that say most)` : "";
  const depth = (gate) => gates.layerOf[gate] / Math.max(1, gates.layers.length - 1);
  plot("fig-mi", "Scatter: mutual information of each gate with the class against its opening rate", [{
    type: "scatter", mode: "markers", x: drawn.map((gate) => 100 * gates.rate(gate)),
    y: drawn.map((gate) => gates.mutualInformation[gate]), hoverinfo: "text", customdata: drawn,
    text: drawn.map((gate) => `${plain(gates.gateName(gate))}<br>${number(gates.mutualInformation[gate], 3)} bit, open for ${percent(gates.rate(gate), 1)}`),
    marker: {
      size: 7, opacity: 0.75, color: drawn.map(depth), colorscale: "Viridis", cmin: 0, cmax: 1,
      line: { color: "#fff", width: 0.5 },
      colorbar: { title: { text: "depth", side: "right" }, tickvals: [0, 1], ticktext: ["first", "last"], thickness: 12 },
    },
  }], layout("open for … % of the images", "mutual information [bit]",
    { xaxis: { range: [-2, 102] }, yaxis: { rangemode: "tozero" } }));
  if ($("fig-mi").chosen) return;
  $("fig-mi").chosen = true;
  $("fig-mi").on("plotly_click", ({ points }) => {
    change({ gate: points[0].customdata });
    $("map").scrollIntoView({ block: "center" });
  });
}

function costs(gates) {
  const unit = gates.macs ? (gates.backboneMacs ? gates.backboneMacs / 100 : 1e6) : 1;
  const values = Float64Array.from(gates.macs || gates.openCounts, (value) => value / unit);
  const axis = gates.macs
    ? gates.backboneMacs ? "multiply-accumulates, gater included [% of the plain backbone's]" : "multiply-accumulates [millions]"
    : "open gates";
  $("cost-title").textContent = "Do wrongly classified images cost more?";
  const kept = [...values.keys()].filter((image) => state.chosen === null || gates.classOf(image) === state.chosen);
  const groups = [["right", "#0072b2", "solid"], ["wrong", CLASS, "dash"]].map(([name, colour, dash]) => ({
    name, colour, dash, values: kept.filter((image) => gates.isWrong(image) === (name === "wrong")).map((image) => values[image]),
  })).filter((group) => group.values.length);
  const { low, high } = moments(values);
  const steps = 40;
  const end = high > low ? high : low + 1;
  const told = groups.map((group) => {
    const { mean, deviation } = moments(group.values);
    return `${number(group.values.length)} ${group.name}: mean ${number(mean, 1)}, deviation ${number(deviation, 1)}`;
  }).join("; ");
  const whose = state.chosen === null ? "" : `, ${short(gates.classes[state.chosen], 40)}`;
  $("cost-about").textContent = `${whose}: ${told}`;
  plot("fig-cost", `Two histograms: ${told}`, groups.map((group) => {
    const { counts, middles } = histogram(group.values, low, end, steps);
    return {
      type: "scatter", mode: "lines", name: group.name, x: middles, hoverinfo: "text",
      y: counts.map((n) => (100 * n) / group.values.length),
      text: counts.map((n) => `${group.name}: ${number(n)} images, ${percent(n / group.values.length, 1)}`),
      line: { color: group.colour, dash: group.dash, shape: "hvh", width: 2 },
    };
  }), layout(axis, "share of the images [%]", { showlegend: true, yaxis: { rangemode: "tozero" } }));
}

/** Draw what a change touches. */
function drawCharts(gates, changed) {
  const has = (name) => changed.has(name);
  if (has("unit")) kinds(gates);
  if (has("start")) {
    kinds(gates);
    entropy(gates);
    if (gates.mutualInformation && gates.width) information(gates);
    if (gates.bars.length) swaps(gates);
    if (gates.splitRates) otherSplit(gates);
  }
  if (!has("start") && !has("chosen")) return;
  layers(gates);
  rates(gates);
  openGates(gates);
  if (gates.similarity || gates.nearest) similarity(gates);
  classLayers(gates);
  special(gates);
  costs(gates);
  for (const span of document.querySelectorAll(".of-class")) {
    span.textContent = state.chosen === null ? "" : `, and ${short(gates.classes[state.chosen], 40)}`;
  }
}
