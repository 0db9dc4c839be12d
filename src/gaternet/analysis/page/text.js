// Words, numbers and elements. Names are given by users: they are only ever set as text.

const $ = (id) => document.getElementById(id);

/** Return text that Plotly, which reads a few HTML tags, shows as it is. */
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const short = (text, most = 24) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Names of layers differ at their end. */
const shortEnd = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);

const FORMATS = [0, 1, 2, 3].map((digits) =>
  new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

const number = (value, digits = 0) => FORMATS[digits].format(value);

const percent = (share, digits = 0) => `${number(100 * share, digits)} %`;

/** Return a new element with properties (or, with a dash, attributes) and children. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Return a table; columns in which all is a number are set as such. */
function table(columns, rows) {
  const isNumber = (text) => typeof text === "string" && /^([−+±]? ?\d.*)?$/.test(text);
  const numeric = columns.map((_, at) => rows.every((row) => isNumber(row[at])));
  const cell = (tag, text, at) => element(tag, { className: numeric[at] ? "n" : "" }, text);
  const head = element("tr", { hidden: !columns.join("") }, ...columns.map((text, at) => cell("th", text, at)));
  for (const th of head.children) th.scope = "col";
  return element("table", {}, element("thead", {}, head), element("tbody", {},
    ...rows.map((row) => element("tr", {}, ...row.map((text, at) => cell("td", text, at))))));
}

/** Make a canvas as sharp as the screen; return its context, in CSS pixels. */
function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}
