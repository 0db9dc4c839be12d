// What was chosen. A change is told to all who show it.

const state = {
  chosen: null, // a class
  pair: [0, null], // images A and B
  active: 0, // which of the two moves
  gate: null, // whose images the map shows
  wrongOnly: false,
  unit: "share",
};
const listeners = [];

function change(values) {
  const changed = new Set(Object.keys(values).filter((name) => state[name] !== values[name]));
  Object.assign(state, values);
  if (changed.size) for (const listener of listeners) listener(changed);
}

/** Put an image where the dot is, or with `other` beside it. */
function compare(image, other = false) {
  const pair = [...state.pair];
  pair[other ? 1 - state.active : state.active] = image;
  change({ pair });
}

/** Images that the choice of a class, and of wrong ones, leaves. */
function isLeft(gates, image) {
  return (state.chosen === null || gates.classOf(image) === state.chosen) &&
    (!state.wrongOnly || gates.isWrong(image));
}

/** The nearest image that is left, in steps of +1 or −1; at the end it stays. */
function neighbour(gates, image, step) {
  for (let next = image + step; next >= 0 && next < gates.count; next += step) {
    if (isLeft(gates, next)) return next;
  }
  return image;
}

// Colours of Okabe and Ito, those that are dark enough on white; a mark of its own besides.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9"];
const MARKS = ["circle", "square", "triangle", "diamond", "cross", "plus", "wedge"];

/** Colour and mark of a class; classes beyond 49 look alike. */
function look(label) {
  if (label >= COLOURS.length * MARKS.length) return { colour: "#5a6675", mark: "circle" };
  const turn = Math.floor(label / COLOURS.length);
  return {
    colour: COLOURS[label % COLOURS.length],
    mark: MARKS[(label + turn) % MARKS.length],
  };
}

function paintMark(context, mark, x, y, radius) {
  const r = radius;
  const paths = {
    circle: () => context.arc(x, y, r, 0, 7),
    square: () => context.rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r),
    triangle: () => polygon([0, -1.15, 1.1, 0.85, -1.1, 0.85]),
    wedge: () => polygon([0, 1.15, 1.1, -0.85, -1.1, -0.85]),
    diamond: () => polygon([0, -1.25, 1.25, 0, 0, 1.25, -1.25, 0]),
    plus: () => cross(0),
    cross: () => cross(Math.PI / 4),
  };
  function polygon(points) {
    for (let at = 0; at < points.length; at += 2) {
      context.lineTo(x + r * points[at], y + r * points[at + 1]);
    }
    context.closePath();
  }
  function cross(turned) {
    context.save();
    context.translate(x, y);
    context.rotate(turned);
    context.rect(-1.2 * r, -0.4 * r, 2.4 * r, 0.8 * r);
    context.rect(-0.4 * r, -1.2 * r, 0.8 * r, 2.4 * r);
    context.restore();
  }
  context.beginPath();
  paths[mark]();
}
