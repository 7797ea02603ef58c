// A pad to draw a digit on, with a mouse, a finger or the keyboard, and the image that a network sees of it.

const PEN = { 8: 1.75 / 32, 28: 1.3 / 28 }; // half of a stroke's width in the image, as in the digits and in MNIST
const FILLED = { 8: 30 / 32, 28: 20 / 28 }; // share of the side that a digit takes up
const FINE = { 8: 4, 28: 4 }; // cells across a pixel; the 8 x 8 digits were made by counting 4 x 4 cells too
const MOST = 3; // times a small drawing is enlarged
const KEY_STEP = 1 / 16; // of the pad's side, for a press of an arrow key

// Squared distance from (x, y) to the segment from a to b.
function apart(x, y, [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
  const t = length ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
  return (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2;
}

// Shares of the side x side pixels that strokes cover, in [0, 1].
function covered(strokes, side) {
  const fine = FINE[side], cells = side * fine, image = new Float32Array(side * side);
  for (let row = 0; row < cells; row++) for (let column = 0; column < cells; column++) {
    const x = (column + 0.5) / cells, y = (row + 0.5) / cells;
    const on = strokes.some((points) => points.some((point, i) => apart(x, y, points[Math.max(0, i - 1)], point) <= PEN[side] ** 2));
    if (on) image[Math.floor(row / fine) * side + Math.floor(column / fine)] += 1 / fine ** 2;
  }
  return image;
}

// A drawing as a network's training images show digits: of their size, centred (28 x 28: by its mass, as in MNIST).
//   strokes: lists of points [x, y] in the unit square; side: 8 or 28.
//   returns Float32Array (side * side) in [0, 1], or null if nothing is drawn.
export function rasterise(strokes, side) {
  const points = strokes.flat();
  if (!points.length) return null;
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
  const room = FILLED[side] - 2 * PEN[side], extent = Math.max(high[0] - low[0], high[1] - low[1], room / MOST);
  const middle = low.map((value, axis) => (value + high[axis]) / 2);
  const fitted = (shift) => strokes.map((stroke) => stroke.map((point) => point.map(
    (value, axis) => 0.5 + ((value - middle[axis]) * room) / extent + shift[axis],
  )));
  const image = covered(fitted([0, 0]), side);
  if (side === 8) return image;
  const mass = image.reduce((sum, value) => sum + value, 0), centre = [0, 0];
  image.forEach((value, i) => {
    centre[0] += (value * ((i % side) + 0.5)) / mass / side;
    centre[1] += (value * (Math.floor(i / side) + 0.5)) / mass / side;
  });
  return covered(fitted(centre.map((value) => 0.5 - value)), side);
}

export class Pad {
  // canvas: the element to draw on; changed: called without arguments after every stroke; say: called with a sentence.
  constructor(canvas, changed, say) {
    Object.assign(this, { canvas, changed, say, strokes: [], pen: [0.5, 0.25], down: false, keyboard: false });
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.#end());
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => { this.keyboard = false; this.show(); });
  }

  clear() {
    this.strokes = [];
    this.down = false;
    this.show();
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  #begin(event) {
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.keyboard = this.down = false;
    this.pointer = true;
    this.strokes.push([this.#at(event)]);
    this.show();
  }

  #move(event) {
    if (!this.pointer) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    this.strokes.at(-1).push(...(moves.length ? moves : [event]).map((each) => this.#at(each)));
    this.show();
  }

  #end() {
    if (!this.pointer) return;
    this.pointer = false;
    this.changed();
  }

  #key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, way = ways[event.key];
    if (!way && ![" ", "Enter", "Delete", "Backspace"].includes(event.key)) return;
    event.preventDefault();
    this.keyboard = true;
    const where = () => `row ${Math.round(this.pen[1] / KEY_STEP)}, column ${Math.round(this.pen[0] / KEY_STEP)} of 16`;
    if (way) {
      this.pen = this.pen.map((value, axis) => Math.min(1, Math.max(0, value + KEY_STEP * way[axis])));
      if (this.down) {
        this.strokes.at(-1).push(this.pen);
        this.changed();
      }
      this.say(`${this.down ? "Drawing" : "Pen up"}, ${where()}.`);
    } else if (event.key === " " || event.key === "Enter") {
      this.down = !this.down;
      if (this.down) {
        this.strokes.push([this.pen]);
        this.changed();
      }
      this.say(`Pen ${this.down ? "down" : "up"}, ${where()}.`);
    } else {
      this.clear();
      this.say("The drawing is empty.");
      this.changed();
    }
    this.show();
  }

  show() {
    const context = this.canvas.getContext("2d"), side = this.canvas.width, style = getComputedStyle(this.canvas);
    context.clearRect(0, 0, side, side);
    context.lineWidth = side / 12;
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = style.color;
    for (const points of this.strokes) {
      context.beginPath();
      points.forEach(([x, y], i) => (i ? context.lineTo(x * side, y * side) : context.moveTo(x * side, y * side)));
      if (points.length === 1) context.lineTo(points[0][0] * side, points[0][1] * side);
      context.stroke();
    }
    if (this.keyboard) {
      context.lineWidth = 3;
      context.strokeStyle = style.outlineColor;
      context.beginPath();
      context.arc(this.pen[0] * side, this.pen[1] * side, side / (this.down ? 24 : 14), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
