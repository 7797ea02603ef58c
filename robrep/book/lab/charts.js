// The pictures of the panel: images on canvases, everything else as SVG. Colours are the style sheet's.

// An element with attributes and children; `on...` attributes are listeners.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const percent = (share) => `${Math.round(100 * share)} %`;
export const figures = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });

// Draws pixels in [0, 1], [C, H, W], on a canvas of their size.
export function drawImage(canvas, pixels, [channels, height, width]) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), area = width * height;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(255 * pixels[(channels === 3 ? c : 0) * area + i]);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// The change x' - x with its largest value at full strength: grey is none.
export function drawChange(canvas, x, before, shape) {
  const most = x.reduce((largest, v, i) => Math.max(largest, Math.abs(v - before[i])), 0);
  drawImage(canvas, x.map((v, i) => 0.5 + (most ? (0.5 * (v - before[i])) / most : 0)), shape);
  return most;
}

const NS = "http://www.w3.org/2000/svg";

// An SVG picture that is redrawn from a text of its contents.
export class Picture {
  constructor(width, height, label) {
    Object.assign(this, { width, height });
    this.svg = document.createElementNS(NS, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("role", "img");
    this.label(label);
    this.layers = {};
  }

  label(text) {
    this.svg.setAttribute("aria-label", text);
  }

  // Sets what one layer shows; layers lie in the order in which they were first drawn.
  draw(layer, content) {
    if (!this.layers[layer]) this.svg.append((this.layers[layer] = document.createElementNS(NS, "g")));
    this.layers[layer].innerHTML = content;
  }
}

const r = (value) => value.toFixed(1);
const line = (x1, y1, x2, y2, kind) => `<line x1="${r(x1)}" y1="${r(y1)}" x2="${r(x2)}" y2="${r(y2)}" class="${kind}"/>`;
const dot = (x, y, radius, kind) => `<circle cx="${r(x)}" cy="${r(y)}" r="${radius}" class="${kind}"/>`;
const text = (x, y, words, kind) => `<text x="${r(x)}" y="${r(y)}" class="${kind}">${words}</text>`;
const rect = (x, y, w, h, kind) => `<rect x="${r(x)}" y="${r(y)}" width="${r(Math.max(0, w))}" height="${r(h)}" class="${kind}"/>`;

// Clean and attacked probability of every class, two thin bars each.
export function probabilities(picture, clean, now) {
  const rows = clean.length, step = picture.height / rows, left = 16, room = picture.width - left - 84;
  const bars = clean.map((p, c) => {
    const y = c * step, end = left + room * Math.max(p, now[c]);
    return text(0, y + 0.72 * step, c, "lab-tick") +
      rect(left, y + 0.12 * step, room * p, 0.36 * step, "lab-clean") +
      rect(left, y + 0.52 * step, room * now[c], 0.36 * step, "lab-now") +
      (Math.max(p, now[c]) >= 0.01 ? text(end + 4, y + 0.72 * step, `${percent(p)} → ${percent(now[c])}`, "lab-tick") : "");
  });
  picture.draw("bars", bars.join(""));
}

// The objective over the steps; what is reached at step `at` is marked.
export function curve(picture, scores, at, unit) {
  const [left, right, top, bottom] = [8, picture.width - 8, 16, picture.height - 16];
  const low = Math.min(0, ...scores), high = Math.max(...scores, low + 1e-9);
  const x = (k) => left + ((right - left) * k) / Math.max(1, scores.length - 1);
  const y = (v) => bottom - ((bottom - top) * (v - low)) / (high - low);
  const path = (part) => `<polyline points="${part.map((v, k) => `${r(x(k))},${r(y(v))}`).join(" ")}"`;
  picture.draw("curve",
    line(left, bottom, right, bottom, "lab-axis") + text(left, picture.height - 4, "step 0", "lab-tick") +
    text(right, picture.height - 4, scores.length - 1, "lab-tick lab-end") +
    `${path(scores)} class="lab-line lab-rest"/>${path(scores.slice(0, at + 1))} class="lab-line"/>` +
    dot(x(at), y(scores[at]), 4, "lab-now") +
    text(left, 11, `${figures(scores[at])} ${unit}`, "lab-value"));
}

// Mean and spread of every dimension of the code, clean beside attacked. `most` is the end of the axis.
export function code(picture, clean, now, most) {
  const D = clean.mean.length, [left, right, top, bottom] = [8, picture.width - 4, 6, picture.height - 16];
  const width = (right - left) / D, middle = (top + bottom) / 2, y = (v) => middle - ((bottom - top) / 2) * (v / most);
  const marks = (p, shift, kind) => Array.from(p.mean, (m, k) => {
    const x = left + width * (k + shift), s = p.scale ? p.scale[k] : 0;
    return (s ? line(x, y(m - s), x, y(m + s), `${kind} lab-spread`) : "") + dot(x, y(m), Math.min(2.4, 0.35 * width), kind);
  }).join("");
  picture.draw("axis", line(left, middle, right, middle, "lab-axis") +
    text(left, picture.height - 4, "dimension 1", "lab-tick") + text(right, picture.height - 4, D, "lab-tick lab-end"));
  picture.draw("clean", marks(clean, 0.3, "lab-clean"));
  picture.draw("now", marks(now, 0.7, "lab-now"));
}

// The plane of the test codes: each a digit. Returns the function from a place in the plane to one in the picture.
export function map(picture, points, places) {
  const count = points.length / 2, every = [...Array(count).keys()].map((i) => [points[2 * i], points[2 * i + 1]]);
  const all = [...every, ...places], ranges = [0, 1].map((axis) => {
    const values = all.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const margin = 12, room = [picture.width - 2 * margin, picture.height - 2 * margin];
  const unit = Math.max(...ranges.map(([low, high], axis) => (high - low) / room[axis])) || 1; // equal units on both axes
  const at = (point) => point.map((v, axis) => {
    const offset = (v - (ranges[axis][0] + ranges[axis][1]) / 2) / unit;
    return axis ? picture.height / 2 - offset : picture.width / 2 + offset;
  });
  picture.draw("codes", every.map((point, i) => text(...at(point), i % 10, `lab-code lab-class-${i % 10}`)).join(""));
  return at;
}

export function path(picture, at, start, places) {
  const points = places.map(at);
  picture.draw("path",
    `<polyline points="${[at(start), ...points].map((p) => p.map(r).join(",")).join(" ")}" class="lab-line"/>` +
    dot(...at(start), 5, "lab-clean lab-ring") + dot(...points.at(-1), 5, "lab-now"));
}
