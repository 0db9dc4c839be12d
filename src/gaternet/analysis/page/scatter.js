// The map: a mark for each image, its picture where there is room for it.

const PICTURES = 240; // at most so many at once
const NEAR = 16; // pixels from a mark that still mean it

class ImageMap {
  constructor(gates, tip) {
    Object.assign(this, { gates, tip, canvas: $("map"), marks: new Map() });
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this._listen();
    new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
    this.resize();
  }

  resize() {
    const box = this.canvas.parentElement;
    [this.wide, this.high] = [box.clientWidth, box.clientHeight];
    this.context = sharp(this.canvas, this.wide, this.high);
    this.marks.clear();
    this._place();
    this.paint();
  }

  /** Places of the images, 0 … 1 across: the embedding's, or those of a grid in order of class. */
  _place() {
    const { gates } = this;
    this.places = new Float32Array(2 * gates.count);
    if (gates.embedding) {
      for (const axis of [0, 1]) {
        let [low, high] = [Infinity, -Infinity];
        for (let at = axis; at < this.places.length; at += 2) {
          low = Math.min(low, gates.embedding[at]);
          high = Math.max(high, gates.embedding[at]);
        }
        for (let at = axis; at < this.places.length; at += 2) {
          this.places[at] = 0.06 + (0.88 * (gates.embedding[at] - low)) / (high - low || 1);
        }
      }
      return;
    }
    const columns = Math.max(1, Math.round(Math.sqrt((gates.count * this.wide) / this.high)));
    const rows = Math.ceil(gates.count / columns);
    const order = Array.from({ length: gates.count }, (_, image) => image);
    if (gates.labels) order.sort((a, b) => gates.labels[a] - gates.labels[b] || a - b);
    order.forEach((image, at) => {
      this.places[2 * image] = ((at % columns) + 0.5) / columns;
      this.places[2 * image + 1] = (Math.floor(at / columns) + 0.5) / rows;
    });
  }

  at(image) {
    const { x, y, zoom } = this.view;
    return [
      ((this.places[2 * image] - x) * zoom + 0.5) * this.wide,
      ((this.places[2 * image + 1] - y) * zoom + 0.5) * this.high,
    ];
  }

  _inView() {
    const found = [];
    for (let image = 0; image < this.gates.count; image++) {
      const [x, y] = this.at(image);
      if (x > -20 && y > -20 && x < this.wide + 20 && y < this.high + 20) found.push(image);
    }
    return found;
  }

  paint() {
    const { context, gates } = this;
    context.clearRect(0, 0, this.wide, this.high);
    const visible = this._inView();
    const left = visible.filter((image) => isLeft(gates, image));
    const narrowed = state.chosen !== null || state.wrongOnly;
    this.pictured = visible.length <= PICTURES;
    if (this.pictured) this._paintPictures(visible);
    else {
      if (narrowed) for (const image of visible) if (!isLeft(gates, image)) this._paintMark(image, true);
      for (const image of left) this._paintMark(image, false);
    }
    [1, 0].forEach((slot) => this._paintPin(state.pair[slot], "AB"[slot]));
  }

  _radius() {
    const crowd = Math.sqrt((this.wide * this.high) / this.gates.count);
    return Math.min(6, Math.max(1.8, 0.3 * crowd * Math.sqrt(this.view.zoom)));
  }

  _paintMark(image, faded) {
    const { gates } = this;
    const open = state.gate === null ? null : gates.isOpen(image, state.gate);
    const label = gates.classOf(image);
    const key = `${faded} ${open} ${open === null && !faded ? label : ""} ${this.view.zoom}`;
    if (!this.marks.has(key)) this.marks.set(key, this._drawMark(label, faded, open));
    const drawn = this.marks.get(key);
    const [x, y] = this.at(image);
    this.context.drawImage(drawn, x - drawn.side / 2, y - drawn.side / 2, drawn.side, drawn.side);
  }

  _drawMark(label, faded, open) {
    const radius = this._radius() * (faded ? 0.75 : 1);
    const canvas = document.createElement("canvas");
    canvas.side = Math.ceil(2.6 * radius) + 2;
    const context = sharp(canvas, canvas.side, canvas.side);
    const { colour, mark } = look(label);
    const middle = canvas.side / 2;
    paintMark(context, open === null && !faded ? mark : "circle", middle, middle, radius);
    context.fillStyle = faded ? "#d9dee5" : open === null ? colour : "#0072b2";
    context.strokeStyle = faded ? "#c3cad3" : "#d55e00";
    context.globalAlpha = open === null && !faded ? 0.85 : 1;
    if (open === 0) context.stroke();
    else context.fill();
    return canvas;
  }

  _paintPictures(visible) {
    const { context, gates } = this;
    // In a plane pictures lie on each other; on a grid each has its place.
    const [part, most] = gates.embedding ? [0.5, 64] : [0.8, 112];
    const room = part * Math.sqrt((this.wide * this.high) / Math.max(visible.length, 6));
    this.side = Math.max(16, Math.min(most, room));
    for (const image of visible) {
      const [x, y] = this.at(image);
      const [left, top] = [x - this.side / 2, y - this.side / 2];
      context.globalAlpha = isLeft(gates, image) ? 1 : 0.18;
      gates.draw(context, image, left, top, this.side);
      const open = state.gate === null ? null : gates.isOpen(image, state.gate);
      if (open !== null) {
        context.lineWidth = 3;
        context.strokeStyle = open ? "#0072b2" : "#d55e00";
        context.setLineDash(open ? [] : [4, 4]);
        context.strokeRect(left, top, this.side, this.side);
        context.setLineDash([]);
      } else if (gates.labels) {
        paintMark(context, look(gates.classOf(image)).mark, left + 5, top + 5, 4);
        context.lineWidth = 3;
        context.strokeStyle = "#fff";
        context.stroke();
        context.fillStyle = look(gates.classOf(image)).colour;
        context.fill();
      }
      context.globalAlpha = 1;
      context.lineWidth = 1;
    }
  }

  _paintPin(image, letter) {
    if (image === null) return;
    const { context } = this;
    const [x, y] = this.at(image);
    const active = "AB"[state.active] === letter;
    const radius = this.pictured ? this.side / 2 : 8;
    context.lineWidth = 5;
    for (const colour of ["#fff", "#000"]) {
      context.strokeStyle = colour;
      context.beginPath();
      if (this.pictured) context.rect(x - radius - 1, y - radius - 1, 2 * radius + 2, 2 * radius + 2);
      else context.arc(x, y, radius, 0, 7);
      context.stroke();
      context.lineWidth = 2;
    }
    const tag = x + radius + 18 < this.wide ? x + radius + 1 : x - radius - 17;
    const top = Math.min(Math.max(y - radius - 9, 1), this.high - 18);
    context.fillStyle = active ? "#000" : "#fff";
    context.strokeStyle = "#000";
    context.lineWidth = 1;
    context.beginPath();
    context.roundRect(tag, top, 16, 16, 3);
    context.fill();
    context.stroke();
    context.fillStyle = active ? "#fff" : "#000";
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(letter, tag + 8, top + 8.5);
  }

  /** The image at a place of the canvas, or null; those that are left come first. */
  find(x, y) {
    let [best, found] = [Infinity, null];
    const reach = this.pictured ? this.side / 2 : NEAR;
    for (let image = 0; image < this.gates.count; image++) {
      const [across, down] = this.at(image);
      const far = this.pictured
        ? Math.max(Math.abs(across - x), Math.abs(down - y))
        : Math.hypot(across - x, down - y);
      if (far <= reach) {
        const rank = far + (isLeft(this.gates, image) ? 0 : reach);
        if (rank < best) [best, found] = [rank, image];
      }
    }
    return found;
  }

  zoom(factor, x = this.wide / 2, y = this.high / 2) {
    const { view } = this;
    const zoom = Math.min(64, Math.max(1, view.zoom * factor));
    for (const [axis, at, size] of [["x", x, this.wide], ["y", y, this.high]]) {
      view[axis] += (at / size - 0.5) * (1 / view.zoom - 1 / zoom);
    }
    view.zoom = zoom;
    this._moved();
  }

  whole() {
    Object.assign(this.view, { x: 0.5, y: 0.5, zoom: 1 });
    this._moved();
  }

  _moved() {
    const reach = 0.5 / this.view.zoom;
    for (const axis of ["x", "y"]) {
      this.view[axis] = Math.min(1 - reach, Math.max(reach, this.view[axis]));
    }
    this.marks.clear();
    this.tip.hide();
    this.paint();
  }

  /** Move the map only where an image would be out of sight. */
  show(image) {
    const [x, y] = this.at(image);
    if (x >= 0 && y >= 0 && x <= this.wide && y <= this.high) return;
    [this.view.x, this.view.y] = [this.places[2 * image], this.places[2 * image + 1]];
    this._moved();
  }

  _listen() {
    const { canvas } = this;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.offsetX, y: event.offsetY, view: { ...this.view }, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) {
        this._hover(event);
        return;
      }
      const [across, down] = [event.offsetX - from.x, event.offsetY - from.y];
      from.moved ||= Math.hypot(across, down) > 4;
      if (!from.moved) return;
      this.view.x = from.view.x - across / this.wide / this.view.zoom;
      this.view.y = from.view.y - down / this.high / this.view.zoom;
      this._moved();
    });
    canvas.addEventListener("pointerup", (event) => {
      const image = from && !from.moved ? this.find(event.offsetX, event.offsetY) : null;
      from = null;
      if (image !== null) compare(image, event.shiftKey);
    });
    canvas.addEventListener("pointercancel", () => { from = null; });
    canvas.addEventListener("pointerleave", () => this.tip.hide());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this._key(event));
    $("zoom-in").onclick = () => this.zoom(1.6);
    $("zoom-out").onclick = () => this.zoom(1 / 1.6);
    $("zoom-all").onclick = () => this.whole();
  }

  _hover(event) {
    const image = this.find(event.offsetX, event.offsetY);
    this.canvas.style.cursor = image === null ? "default" : "pointer";
    if (image === null) this.tip.hide();
    else this.tip.image(image, event.clientX, event.clientY);
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { gates } = this;
    const now = state.pair[state.active] ?? -1;
    const go = (image) => {
      if (image < 0 || image >= gates.count) return;
      compare(image);
      this.show(image);
    };
    const keys = {
      ArrowRight: () => go(neighbour(gates, now, 1)),
      ArrowDown: () => go(neighbour(gates, now, 1)),
      ArrowLeft: () => go(neighbour(gates, now, -1)),
      ArrowUp: () => go(neighbour(gates, now, -1)),
      Home: () => go(neighbour(gates, -1, 1)),
      End: () => go(neighbour(gates, gates.count, -1)),
      a: () => change({ active: 0 }),
      b: () => change({ active: 1 }),
      "+": () => this.zoom(1.6),
      "=": () => this.zoom(1.6),
      "-": () => this.zoom(1 / 1.6),
      0: () => this.whole(),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
