// The panel: controls, two networks side by side, and the way from one to the other.

import { drawImage, el, figures } from "./charts.js";
import { Pad, rasterise } from "./drawing.js";
import { Engine } from "./engine.js";
import { Side } from "./side.js";
import * as State from "./state.js";
import { Sweep } from "./sweep.js";

const FRAME = 60; // ms that a step is shown for
const PAGE = 10; // digits shown at once, one of each class
const PAD = 224; // pixels of the pad's canvas
const calm = matchMedia("(prefers-reduced-motion: reduce)");

async function styled() {
  const href = new URL("lab.css", import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  const sheet = el("link", { rel: "stylesheet", href });
  const loaded = new Promise((resolve) => { sheet.onload = sheet.onerror = resolve; });
  document.head.append(sheet);
  await loaded;
}

// Opens the lab in a box of the page.
//   box: the element whose contents are replaced; box.dataset.lab holds a state as a link does.
//   throws Error with a sentence for the reader: the lab's files cannot be read.
export async function open(box) {
  const engine = new Engine();
  const [index] = await Promise.all([engine.ask("index"), styled()]);
  const base = State.read(box.dataset.lab ?? "", index), linked = State.inLink(location.hash);
  const given = linked ? State.read(location.hash, index, base.state) : base;
  const panel = new Panel(box, engine, index, given.state, base.state);
  panel.warn(given.problems);
  await panel.choose(linked);
}

class Panel {
  #digits = null; // images of the set: { images, count, note }
  #busy = false;
  #again = false;
  #step = 0;
  #timer = 0;

  constructor(box, engine, index, state, base) {
    Object.assign(this, { box, engine, index, state, base });
    this.sides = [new Side("A"), new Side("B")];
    this.sweep = new Sweep(engine, () => this.#attack());
    this.#build();
    addEventListener("hashchange", () => this.#follow());
  }

  // ---- what stands where

  #build() {
    const select = (name, label, options, change) => {
      const control = el("select", { id: this.#id(name), onchange: () => change(control.value) });
      const fill = (entries) => control.replaceChildren(...entries.map(([value, words]) => el("option", { value }, words)));
      fill(options);
      return { control, fill, row: el("div", { class: "lab-row" }, el("label", { for: control.id }, label), control) };
    };
    const range = (name, label, attributes, change) => {
      const shown = el("output", { for: this.#id(name) });
      const control = el("input", { type: "range", id: this.#id(name), ...attributes, oninput: () => change(Number(control.value)) });
      return { control, shown, row: el("div", { class: "lab-row" }, el("label", { for: control.id }, label, " ", shown), control) };
    };
    const set = (changes) => this.set(changes), datasets = Object.entries(this.index.datasets);
    this.controls = {
      set: select("set", "Images", datasets.map(([id, { name }]) => [id, name]),
        (value) => this.#change(value)),
      a: select("a", "Network A", [], (a) => set({ a })),
      b: select("b", "Network B", [], (b) => set({ b })),
      maximise: select("maximise", "The attack maximises", Object.entries(State.OBJECTIVES), (maximise) => set({ maximise })),
      norm: select("norm", "It may change", Object.entries(State.NORMS), (norm) => set({ norm, eps: State.LIMITS[norm].usual })),
      start: select("start", "It starts at", Object.entries(State.STARTS), (start) => set({ start })),
      eps: range("eps", "Radius ε", { min: 0 }, (eps) => set({ eps })),
      steps: range("steps", "Steps", { min: 1, max: State.MOST_STEPS, step: 1 }, (steps) => set({ steps })),
    };
    const { set: images, a, b, maximise, norm, start, eps, steps } = this.controls;

    this.problem = el("p", { class: "lab-problem", role: "alert", hidden: true });
    this.status = el("p", { class: "lab-note", role: "status" });
    this.strip = el("div", { class: "lab-strip", role: "group", "aria-label": "Digits" });
    this.note = el("p", { class: "lab-note" });
    this.drawButton = el("button", { type: "button", "aria-expanded": "false", onclick: () => this.#toggleDrawing() }, "Draw a digit");
    const turn = (by) => el("button", { type: "button", "aria-label": by < 0 ? "Other digits, back" : "Other digits", onclick: () => this.#turn(by) }, by < 0 ? "‹" : "›");
    this.#buildPad();

    const button = (words, press, kind) => el("button", { type: "button", class: kind, onclick: press }, words);
    this.run = button("Run the attack", () => this.play(), "lab-main");
    this.scrub = range("step", "Step", { min: 0, step: 1 }, (step) => { this.#stop(); this.show(step); });
    this.link = button("Copy a link to this", () => this.#copy());
    this.actions = el("div", { class: "lab-actions" }, this.run,
      button("One step", () => { this.#stop(); this.show(this.#step >= this.#last ? 0 : this.#step + 1); }),
      button("Another random start", () => set({ seed: (this.state.seed % 1e6) + 1 })), this.link);

    const field = (legend, ...rows) => el("fieldset", {}, el("legend", {}, legend), ...rows);
    this.box.replaceChildren(el("div", { class: "lab" },
      this.problem,
      el("div", { class: "lab-controls" },
        field("The image", images.row, el("div", { class: "lab-pick" }, turn(-1), this.strip, turn(1)), this.drawButton, this.drawing, this.note),
        field("The attack", maximise.row, norm.row, eps.row, start.row, steps.row),
        el("div", {}, field("Two networks", a.row, b.row), this.actions, this.scrub.row)),
      this.status,
      el("p", { class: "lab-legend" }, el("span", { class: "lab-key lab-clean" }), " clean ", el("span", { class: "lab-key lab-now" }), " attacked"),
      el("div", { class: "lab-sides" }, ...this.sides.map(({ element }) => element)),
      this.sweep.element, this.#leftOut()));
  }

  #buildPad() {
    const canvas = el("canvas", {
      width: PAD, height: PAD, tabindex: 0, role: "application", class: "lab-pad", "aria-describedby": this.#id("how"),
      "aria-label": "Drawing pad",
    });
    this.pad = new Pad(canvas, () => this.#drawn(), (sentence) => { this.said.textContent = sentence; });
    this.said = el("p", { class: "lab-note", role: "status" });
    this.tint = el("select", { id: this.#id("tint"), onchange: () => this.#drawn() });
    this.tintRow = el("div", { class: "lab-row" }, el("label", { for: this.tint.id }, "Colour"), this.tint);
    this.drawing = el("div", { class: "lab-drawing", hidden: true }, canvas,
      el("p", { class: "lab-note", id: this.#id("how") }, "Draw with a mouse or a finger. With the keyboard: the arrow keys move the pen, " +
        "Space puts it down or lifts it, Delete clears the pad. The drawing is centred and scaled as the digits are."),
      this.tintRow, el("button", { type: "button", onclick: () => { this.pad.clear(); this.#drawn(); } }, "Clear"), this.said);
  }

  #leftOut() {
    const chapters = new Map();
    for (const { name, chapter, scale, why } of this.index.leftOut) {
      const key = `${chapter}, ${why}`;
      chapters.set(key, [...(chapters.get(key) ?? []), scale === "demo" ? name : `${name} (${scale})`]);
    }
    return el("details", { class: "lab-fold" }, el("summary", {}, "What is not here"),
      el("p", {}, "The lists hold every network whose weights were recorded. The chapters have more rows:"),
      el("ul", {}, ...Array.from(chapters, ([key, names]) => el("li", {}, `${key}: ${names.join(", ")}.`))));
  }

  #id(name) {
    return `lab-${name}`;
  }

  warn(problems) {
    this.problem.textContent = problems.join(" ");
    this.problem.hidden = !problems.length;
  }

  // ---- the state

  get #models() {
    return this.index.models.filter(({ dataset }) => dataset === this.state.set);
  }

  get #shape() {
    return this.index.datasets[this.state.set].shape;
  }

  set(changes) {
    Object.assign(this.state, changes);
    this.warn([]);
    return this.choose(true);
  }

  // Other images: what is on the pad is made an image of their size and colours.
  async #change(set) {
    await this.set({ set, image: 0, drawing: null, a: "", b: "" });
    if (!this.drawing.hidden && this.pad.strokes.length) this.#drawn();
  }

  async #follow() {
    if (!State.inLink(location.hash) || location.hash === State.write(this.state)) return;
    const { state, problems } = State.read(location.hash, this.index, this.base);
    this.state = state;
    this.warn(problems);
    await this.choose(true);
  }

  // Brings the controls in line with the state, and attacks.
  async choose(link) {
    const { state, controls } = this, models = this.#models, limit = State.LIMITS[state.norm];
    const named = (...names) => models.find(({ name }) => names.includes(name))?.id;
    if (!models.some(({ id }) => id === state.a)) state.a = named("Standard", "VAE") ?? models[0].id;
    if (!models.some(({ id }) => id === state.b)) state.b = named("VAE + Urkle", "Smooth encoder") ?? models.at(-1).id;
    const groups = [...new Set(models.map(({ chapter }) => chapter))].map((chapter) => [chapter, models.filter((m) => m.chapter === chapter)]);
    for (const name of ["a", "b"]) {
      controls[name].control.replaceChildren(...groups.map(([chapter, own]) =>
        el("optgroup", { label: chapter }, ...own.map(({ id, name: words }) => el("option", { value: id }, words)))));
    }
    for (const name of ["set", "a", "b", "maximise", "norm", "start"]) controls[name].control.value = state[name];
    Object.assign(controls.eps.control, { max: limit.most, step: limit.step, value: state.eps });
    controls.eps.shown.textContent = figures(state.eps);
    controls.steps.control.value = controls.steps.shown.textContent = state.steps;
    if (this.chosen !== state.set) this.sweep.offer(models);
    if (link) history.replaceState(null, "", State.write(state));
    try {
      if (this.chosen !== state.set) {
        const wanted = state.set, digits = await this.engine.ask("digits", { set: wanted });
        if (wanted !== this.state.set) return;
        this.#digits = digits;
        this.chosen = wanted;
        const tints = Object.keys(this.index.datasets[wanted].colours);
        this.tint.replaceChildren(...tints.map((name) => el("option", {}, name)));
        this.tintRow.hidden = !tints.length;
      }
    } catch (error) {
      this.warn([error.message]);
      return;
    }
    this.#showDigits();
    await this.#renew();
  }

  // ---- the image

  #pixels(bytes, at) {
    const size = this.#shape.reduce((all, n) => all * n, 1);
    return Float32Array.from(bytes.subarray(at * size, (at + 1) * size), (v) => v / 255);
  }

  // The image that is attacked, and its label (null for a drawing: then what each network says of it).
  #image() {
    const { drawing, image } = this.state;
    if (!drawing) return { x: this.#pixels(this.#digits.images, image), label: image % PAGE };
    return { x: drawing.some((v) => v > 12) ? this.#pixels(drawing, 0) : null, label: null };
  }

  #showDigits() {
    const page = Math.floor(this.state.image / PAGE);
    this.strip.replaceChildren(...Array.from({ length: PAGE }, (_, c) => {
      const number = page * PAGE + c, canvas = el("canvas", { "aria-hidden": "true" });
      drawImage(canvas, this.#pixels(this.#digits.images, number), this.#shape);
      const pressed = !this.state.drawing && number === this.state.image;
      return el("button", {
        type: "button", "aria-label": `A ${c}, example ${page + 1}`, "aria-pressed": String(pressed),
        onclick: () => { this.set({ image: number, drawing: null }); this.strip.children[c].focus(); },
      }, canvas);
    }));
    this.note.textContent = this.#digits.note ?? "";
  }

  #turn(by) {
    const pages = this.#digits.count / PAGE, page = (Math.floor(this.state.image / PAGE) + by + pages) % pages;
    this.set({ image: page * PAGE + (this.state.image % PAGE), drawing: null });
  }

  #toggleDrawing() {
    const shown = this.drawing.hidden;
    this.drawing.hidden = !shown;
    this.drawButton.setAttribute("aria-expanded", String(shown));
    if (shown) this.pad.show();
    else if (this.state.drawing) this.set({ drawing: null });
  }

  #drawn() {
    const [channels, side] = this.#shape, grey = rasterise(this.pad.strokes, side) ?? new Float32Array(side * side);
    const tint = this.index.datasets[this.state.set].colours[this.tint.value] ?? [1, 1, 1];
    const drawing = new Uint8Array(channels * side * side);
    for (let c = 0; c < channels; c++) grey.forEach((v, i) => { drawing[c * side * side + i] = Math.round(255 * v * tint[c]); });
    this.set({ drawing });
  }

  // ---- the attack

  #attack() {
    const { maximise, norm, eps, steps, start, seed } = this.state;
    return { ...this.#image(), settings: { objective: maximise, norm, eps, steps, start }, seed, models: this.#models };
  }

  // Attacks both networks anew; while that runs, further changes are gathered into one more attack.
  async #renew() {
    if (this.#busy) return void (this.#again = true);
    this.#busy = true;
    do {
      this.#again = false;
      this.#stop();
      const { x, label, settings, seed } = this.#attack(), shape = this.#shape;
      if (!x) {
        this.warn(["The drawing is empty: draw a digit on the pad, or pick one."]);
        break;
      }
      if (this.problem.textContent.startsWith("The drawing is empty")) this.warn([]);
      for (const [k, side] of this.sides.entries()) {
        const model = k ? this.state.b : this.state.a;
        try {
          side.take(await this.engine.ask("attack", { model, x, label, settings, seed }), x, shape, settings.objective);
        } catch (error) {
          side.fail(error.message);
        }
      }
      this.scrub.control.max = this.#last;
    } while (this.#again);
    this.#busy = false;
    this.show(this.#last);
  }

  get #last() {
    return Math.max(...this.sides.map(({ steps }) => steps));
  }

  show(step) {
    this.#step = step;
    this.scrub.control.value = step;
    this.scrub.shown.textContent = `${step} of ${this.#last}`;
    for (const side of this.sides) side.show(step);
    if (step === this.#last) this.status.textContent = `After ${step} steps: ${this.sides.map((side) => side.summary(step)).join("; ")}.`;
  }

  // Shows the attack from its start; at once where motion is not wanted.
  play() {
    this.#stop();
    if (calm.matches) return this.show(this.#last);
    this.show(0);
    this.#timer = setInterval(() => {
      if (this.#step >= this.#last) this.#stop();
      else this.show(this.#step + 1);
    }, FRAME);
  }

  #stop() {
    clearInterval(this.#timer);
  }

  async #copy() {
    const address = new URL(State.write(this.state), location.href).href;
    history.replaceState(null, "", address);
    try {
      await navigator.clipboard.writeText(address);
      this.status.textContent = "The link is copied. It holds the digit, the networks and the attack.";
    } catch {
      this.status.textContent = "The address of this page is now that link: copy it from the address bar.";
    }
  }
}
