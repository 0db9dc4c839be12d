// Images A and B layer by layer: a cell for each gate, above what is unlike its class.

const LABEL = 144; // pixels for a layer's name
const COUNT = 56; // for its numbers
const LINE = 28; // of cells, marks and bars
const GAP = 20;

class Strips {
  constructor(gates, tip) {
    Object.assign(this, { gates, tip, box: $("strips-box"), canvas: $("strips"), cursor: null });
    this._listen();
    new ResizeObserver(() => this.resize()).observe(this.box);
    this.resize();
  }

  resize() {
    [this.wide, this.high] = [this.box.clientWidth, this.box.clientHeight];
    this.context = sharp(this.canvas, this.wide, this.high);
    this.canvas.style.height = `${this.high}px`;
    this.canvas.style.width = `${this.wide}px`;
    this._lay();
    this.paint();
  }

  /** Where each layer is: rows as high as its gates need lines. */
  _lay() {
    this.room = (this.wide - LABEL - GAP - 20) / 2 - COUNT - 8;
    let top = 6;
    this.rows = this.gates.layers.map(({ from, to }) => {
      const cell = Math.max(4, Math.min(16, Math.floor(this.room / (to - from || 1))));
      const perLine = Math.max(1, Math.floor(this.room / cell));
      const lines = Math.max(1, Math.ceil((to - from) / perLine));
      const row = { top, cell, perLine, height: lines * LINE + 6 };
      top += row.height;
      return row;
    });
    $("strips-all").style.height = `${Math.max(top, this.high)}px`;
  }

  left(slot) {
    return LABEL + slot * (this.room + COUNT + 8 + GAP);
  }

  paint() {
    const { context, gates } = this;
    context.clearRect(0, 0, this.wide, this.high);
    const scrolled = this.box.scrollTop;
    this.means = state.pair.map((image) =>
      image === null ? null : gates.classRates(gates.classOf(image)));
    gates.layers.forEach((layer, index) => {
      const { top, height } = this.rows[index];
      if (top + height < scrolled || top > scrolled + this.high) return;
      this._paintLayer(layer, top - scrolled);
    });
  }

  _paintLayer(layer, top) {
    const { context } = this;
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = "#1c2430";
    context.fillText(this._fit(layer.name), LABEL - 12, top + 10);
    state.pair.forEach((image, slot) => {
      if (image === null) return;
      this._paintCount(layer, image, slot, top);
      if (layer.from === layer.to) this._paintConstant(layer, slot, top);
      for (let gate = layer.from; gate < layer.to; gate++) this._paintGate(gate, slot, top);
    });
  }

  _fit(name) {
    const most = LABEL - 14;
    let text = name;
    while (text && this.context.measureText(text === name ? text : `…${text}`).width > most) {
      text = text.slice(1);
    }
    return text === name ? text : `…${text}`;
  }

  _paintCount(layer, image, slot, top) {
    const { context, gates } = this;
    const right = this.left(slot) + this.room + COUNT + 8;
    context.textAlign = "right";
    context.fillStyle = "#1c2430";
    context.font = "12px system-ui, sans-serif";
    context.fillText(`${gates.openIn(image, layer)}/${layer.gates}`, right, top + 8);
    if (!this.means[slot] || layer.from === layer.to) return;
    const away = gates.distance(image, this.means[slot], layer.from, layer.to);
    context.fillStyle = "#5a6675";
    context.font = "11px system-ui, sans-serif";
    context.fillText(`Δ ${number(away, 1)}`, right, top + 21);
  }

  _paintConstant(layer, slot, top) {
    const { context } = this;
    context.textAlign = "left";
    context.fillStyle = "#5a6675";
    context.font = "12px system-ui, sans-serif";
    const told = layer.on === layer.gates ? "all always open"
      : layer.off === layer.gates ? "all always closed" : `${layer.on} always open, the others never`;
    context.fillText(told, this.left(slot), top + 10);
  }

  /** The upper left corner of a gate's cell, from the top of its layer. */
  _corner(gate, slot) {
    const index = this.gates.layerOf[gate];
    const { cell, perLine } = this.rows[index];
    const place = gate - this.gates.layers[index].from;
    return [this.left(slot) + (place % perLine) * cell, Math.floor(place / perLine) * LINE];
  }

  _paintGate(gate, slot, top) {
    const { context, gates } = this;
    const { cell } = this.rows[gates.layerOf[gate]];
    const [x, down] = this._corner(gate, slot);
    const y = top + down;
    const gap = cell > 4 ? 1.5 : 0.75;
    const open = gates.isOpen(state.pair[slot], gate);
    const [one, other] = state.pair;
    if (one !== null && other !== null && gates.isOpen(one, gate) !== gates.isOpen(other, gate)) {
      context.fillStyle = "#000";
      context.fillRect(x, y, cell - gap, 2.5);
    }
    context.lineWidth = 1;
    context.fillStyle = open ? "#0072b2" : cell > 4 ? "#fff" : "#e4e8ee";
    context.strokeStyle = open ? "#0072b2" : "#aab4bf";
    context.fillRect(x, y + 4, cell - gap, 10);
    if (cell > 4) context.strokeRect(x + 0.5, y + 4.5, cell - gap - 1, 9);
    if (gate === this.cursor || gate === state.gate) {
      context.lineWidth = 2;
      context.strokeStyle = "#000";
      context.strokeRect(x - 1, y + 2, cell - gap + 2, 14);
    }
    if (this.means[slot]) this._paintAway(open - this.means[slot][gate], x, y + 20.5, cell - gap);
  }

  /** A bar up where the image opens what its class seldom does, down (hollow) where it closes. */
  _paintAway(away, x, middle, wide) {
    const { context } = this;
    context.fillStyle = "#d5dbe2";
    context.fillRect(x, middle - 0.5, wide, 1);
    const high = 5.5 * Math.abs(away);
    if (high < 0.3) return;
    context.fillStyle = context.strokeStyle = "#d55e00";
    if (away > 0) context.fillRect(x, middle - high, wide, high);
    else if (wide < 4) context.fillRect(x + 0.5, middle, 1, high);
    else {
      context.lineWidth = 1;
      context.strokeRect(x + 0.5, middle + 0.5, wide - 1, Math.max(0.5, high - 1));
    }
  }

  /** The gate and the slot under a point of the canvas, or null. */
  find(x, y) {
    const down = y + this.box.scrollTop;
    const index = this.rows.findIndex(({ top, height }) => down >= top && down < top + height);
    if (index < 0) return null;
    const layer = this.gates.layers[index];
    const { top, cell, perLine } = this.rows[index];
    for (const slot of [0, 1]) {
      const across = Math.floor((x - this.left(slot)) / cell);
      if (state.pair[slot] === null || across < 0 || across >= perLine) continue;
      const gate = layer.from + Math.floor((down - top) / LINE) * perLine + across;
      if (gate < layer.to) return { gate, slot };
    }
    return { layer };
  }

  _listen() {
    const { canvas, tip } = this;
    this.box.addEventListener("scroll", () => this.paint());
    canvas.addEventListener("pointermove", (event) => {
      const found = this.find(event.offsetX, event.offsetY);
      canvas.style.cursor = found && found.gate !== undefined ? "pointer" : "default";
      if (!found) tip.hide();
      else if (found.layer) tip.layer(found.layer, event.clientX, event.clientY);
      else tip.gate(found.gate, event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => tip.hide());
    canvas.addEventListener("click", (event) => {
      const found = this.find(event.offsetX, event.offsetY);
      if (found && found.gate !== undefined) this._choose(found.gate);
    });
    canvas.addEventListener("keydown", (event) => this._key(event));
    canvas.addEventListener("blur", () => {
      this.cursor = null;
      tip.hide();
      this.paint();
    });
  }

  _choose(gate) {
    change({ gate: state.gate === gate ? null : gate });
  }

  _key(event) {
    const { gates } = this;
    if (event.ctrlKey || event.metaKey || event.altKey || !gates.width) return;
    const now = this.cursor ?? state.gate ?? 0;
    const keys = {
      ArrowRight: () => this._go(now + 1),
      ArrowLeft: () => this._go(now - 1),
      ArrowDown: () => this._go(this._nextLayer(now, 1)),
      ArrowUp: () => this._go(this._nextLayer(now, -1)),
      Home: () => this._go(0),
      End: () => this._go(gates.width - 1),
      Enter: () => this._choose(now),
      " ": () => this._choose(now),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  _nextLayer(gate, step) {
    const { layers, layerOf } = this.gates;
    for (let index = layerOf[gate] + step; layers[index]; index += step) {
      if (layers[index].to > layers[index].from) return layers[index].from;
    }
    return gate;
  }

  _go(gate) {
    this.cursor = Math.max(0, Math.min(this.gates.width - 1, gate));
    const row = this.rows[this.gates.layerOf[this.cursor]];
    const [x, down] = this._corner(this.cursor, 0);
    const top = row.top + down;
    if (top < this.box.scrollTop) this.box.scrollTop = top - 8;
    const below = top + LINE - this.box.scrollTop - this.high;
    if (below > 0) this.box.scrollTop += below + 8;
    this.paint();
    const place = this.canvas.getBoundingClientRect();
    this.tip.gate(this.cursor, place.left + x + 8, place.top + top - this.box.scrollTop + 10);
  }
}
