// The same images under other gates, and the same gates on other images.

/** Accuracy under each image's own gates and under others; the lines are intervals of the change. */
function swaps(gates) {
  const { bars, chance } = gates;
  const places = bars.map((_, at) => at);
  const told = bars.map(({ name, accuracy, interval }, at) =>
    `${plain(name)}: ${percent(accuracy, 2)}${at ? ` ± ${number(100 * interval, 2)}` : ""}`);
  plot("fig-swaps", `Bars: ${told.join("; ")}`, [{
    type: "bar", orientation: "h", x: bars.map(({ accuracy }) => 100 * accuracy), y: places,
    marker: { color: places.map((at) => (at ? "#56b4e9" : "#0072b2")) },
    error_x: { type: "data", array: bars.map(({ interval }) => 100 * interval), thickness: 1 },
    hoverinfo: "text", textposition: "none", text: told,
  }], layout("accuracy [%]", "", {
    xaxis: { range: [0, 100] },
    yaxis: { tickvals: places, ticktext: bars.map(({ name }) => plain(name)), autorange: "reversed", showgrid: false },
    shapes: chance === null ? [] : [{
      type: "line", x0: 100 * chance, x1: 100 * chance, y0: 0, y1: 1, yref: "paper",
      line: { color: CLASS, width: 1.5, dash: "dash" },
    }],
  }));
  $("swaps-about").textContent = chance === null ? "" : `; dashed: the commonest class for all, ${percent(chance, 1)}`;
}

/** Each gate's opening rate over that on another split, all gates of the network. */
function otherSplit(gates) {
  const count = gates.gates;
  const [own, other] = [gates.splitRates.subarray(0, count), gates.splitRates.subarray(count)];
  const apart = (gate) => Math.abs(own[gate] - other[gate]);
  let drawn = Array.from(own.keys());
  const about = `: these images beside ${gates.against} images`;
  if (count > MOST_MARKS) {
    drawn = drawn.sort((a, b) => apart(b) - apart(a)).slice(0, MOST_MARKS);
  }
  $("agreement-about").textContent = drawn.length < count
    ? `${about}, the ${number(drawn.length)} gates that differ most` : about;
  plot("fig-agreement", `Scatter: opening rates of the gates here and on ${gates.against} images`, [{
    type: "scatter", mode: "lines", x: [0, 100], y: [0, 100], hoverinfo: "skip", line: { color: "#bbb", width: 1 },
  }, {
    type: "scatter", mode: "markers", x: drawn.map((gate) => 100 * other[gate]),
    y: drawn.map((gate) => 100 * own[gate]), hoverinfo: "text", marker: { size: 6, opacity: 0.6, color: "#0072b2" },
    text: drawn.map((gate) => `${plain(gates.nameOfColumn(gate))}<br>${percent(own[gate], 1)} here, ${percent(other[gate], 1)} there`),
  }], layout(`open for … % of the ${gates.against} images`, "open for … % of these images", {
    xaxis: { range: [-2, 102] }, yaxis: { range: [-2, 102] },
  }));
}
