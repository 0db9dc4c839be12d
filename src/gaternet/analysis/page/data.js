// What the page is about: images, their gates as bits, and what is counted from them.

const VIEWS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

/** Unpack the arrays that the header names. */
async function readArrays(places) {
  const bytes = Uint8Array.from(atob($("arrays").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return Object.fromEntries(Object.entries(places).map(([name, { dtype, offset, length }]) =>
    [name, new VIEWS[dtype](buffer, offset, length)]));
}

async function readPictures() {
  const picture = new Image();
  picture.src = `data:image/webp;base64,${$("sprite").textContent}`;
  await picture.decode();
  return picture;
}

/** Images 0 … N − 1 and the gates 0 … D − 1 that are shown one by one. */
class Gates {
  constructor(header, arrays, pictures) {
    Object.assign(this, header, arrays);
    this.pictures = pictures;
    this.count = header.images;
    this.width = this.shown.length;
    this.rowBytes = Math.ceil(this.count / 8); // of the bits of one gate
    this.constantOn = this.layers.reduce((sum, layer) => sum + layer.on, 0);
    this._placeLayers();
    this._countOpen();
  }

  _placeLayers() {
    this.layerOf = new Uint32Array(this.width);
    let from = 0;
    this.layers.forEach((layer, index) => {
      let to = from;
      while (to < this.width && this.shown[to] < layer.first + layer.gates) {
        this.layerOf[to++] = index;
      }
      Object.assign(layer, { from, to });
      from = to;
    });
  }

  /** One pass over all bits: how many images open each gate, in all and in each class. */
  _countOpen() {
    const { width, rowBytes, order } = this;
    this.rank = new Uint32Array(this.count);
    order.forEach((image, rank) => { this.rank[image] = rank; });
    this.classSizes = new Uint32Array(this.classes.length);
    for (let image = 0; image < this.count; image++) this.classSizes[this.classOf(image)]++;
    this.gateCounts = new Uint32Array(width);
    this.openCounts = new Uint32Array(this.count).fill(this.constantOn);
    this.classCounts = this.labels ? new Uint32Array(this.classes.length * width) : null;
    for (let gate = 0; gate < width; gate++) {
      for (let byte = 0; byte < rowBytes; byte++) {
        let rest = this.bits[gate * rowBytes + byte];
        while (rest) {
          const place = Math.clz32(rest) - 24;
          rest &= ~(128 >> place);
          this._countOne(order[8 * byte + place], gate);
        }
      }
    }
  }

  _countOne(image, gate) {
    this.gateCounts[gate]++;
    this.openCounts[image]++;
    if (this.classCounts) this.classCounts[this.labels[image] * this.width + gate]++;
  }

  isOpen(image, gate) {
    const rank = this.rank[image];
    return (this.bits[gate * this.rowBytes + (rank >> 3)] >> (7 - (rank & 7))) & 1;
  }

  /** The class that an image is compared with: its label, or else what was predicted. */
  classOf(image) {
    return (this.labels || this.predictions)[image];
  }

  isWrong(image) {
    return Boolean(this.labels) && this.labels[image] !== this.predictions[image];
  }

  /** The place of an image in the split that was analyzed. */
  numberOf(image) {
    return this.numbers ? this.numbers[image] : image;
  }

  /** The image at a place of the split, or null where it is not on the page. */
  imageAt(place) {
    const image = this.nearestTo(place);
    return this.numberOf(image) === place ? image : null;
  }

  /** The places of the images that open or close a gate most. */
  extremes(side, gate) {
    const count = this[side].length / this.width;
    return Array.from({ length: count }, (_, at) => this[side][at * this.width + gate]);
  }

  /** The image whose number is nearest. */
  nearestTo(wanted) {
    if (!this.numbers) return Math.max(0, Math.min(this.count - 1, wanted));
    let best = 0;
    this.numbers.forEach((place, image) => {
      if (Math.abs(place - wanted) < Math.abs(this.numbers[best] - wanted)) best = image;
    });
    return best;
  }

  nameOf(image) {
    return this.names ? this.names[image] : `image ${number(this.numberOf(image))}`;
  }

  rate(gate) {
    return this.gateCounts[gate] / this.count;
  }

  /** For how many images of a class each gate is open, or null where there are none. */
  countsOf(label) {
    if (!this.classCounts || !this.classSizes[label]) return null;
    return this.classCounts.subarray(label * this.width, (label + 1) * this.width);
  }

  /** How often a class opens each gate, or null where that is not known. */
  classRates(label) {
    if (this.rates) {
      const row = this.rated.indexOf(label);
      return row < 0 ? null : this.rates.subarray(row * this.width, (row + 1) * this.width);
    }
    const counts = this.countsOf(label);
    return counts && Float32Array.from(counts, (n) => n / this.classSizes[label]);
  }

  openIn(image, layer) {
    let open = layer.on;
    for (let gate = layer.from; gate < layer.to; gate++) open += this.isOpen(image, gate);
    return open;
  }

  /** How many gates an image is away from the mean of a class: Σ |gate − rate|. */
  distance(image, rates, from = 0, to = this.width) {
    let sum = 0;
    for (let gate = from; gate < to; gate++) sum += Math.abs(this.isOpen(image, gate) - rates[gate]);
    return sum;
  }

  differing(one, other, from = 0, to = this.width) {
    let sum = 0;
    for (let gate = from; gate < to; gate++) sum += this.isOpen(one, gate) ^ this.isOpen(other, gate);
    return sum;
  }

  /** Name a gate by its layer and its place there, which starts at 0. */
  gateName(gate) {
    return this.nameOfColumn(this.shown[gate]);
  }

  /** Name any gate of the network. */
  nameOfColumn(column) {
    const layer = this.layers.find(({ first, gates }) => column < first + gates);
    return `${layer.name}, gate ${column - layer.first}`;
  }

  /** Draw an image into a square of a canvas. */
  draw(context, image, left, top, side) {
    const { columns, width, height } = this.sprite;
    const scale = side / Math.max(width, height);
    const [w, h] = [width * scale, height * scale];
    context.imageSmoothingEnabled = scale < 1 || width > 64;
    context.drawImage(this.pictures, (image % columns) * width, Math.floor(image / columns) * height,
      width, height, left + (side - w) / 2, top + (side - h) / 2, w, h);
  }
}
