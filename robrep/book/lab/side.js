// One network's half of the panel: its images, probabilities, curve, code and map.

import { code, curve, drawChange, drawImage, el, figures, map, path, percent, Picture, probabilities } from "./charts.js";

const UNITS = { loss: "nats", kl: "nats", wasserstein: "squared units of the code", cosine: "of at most 4" };
const TITLES = {
  loss: "Loss", kl: "KL divergence of the codes", wasserstein: "Squared Wasserstein distance of the codes",
  cosine: "2 − 2 cos of the codes",
};
const largest = (values) => values.indexOf(Math.max(...values));

export class Side {
  // letter: "A" or "B"
  constructor(letter) {
    this.letter = letter;
    this.title = el("p", { class: "lab-title" }, `Network ${letter}`);
    this.verdict = el("p", { class: "lab-verdict" });
    this.images = ["x, the image", "x′, attacked", "x′ − x, enlarged"].map((name) => {
      const canvas = el("canvas", { role: "img", "aria-label": name });
      return { name, canvas, box: el("figure", {}, canvas, el("figcaption", {}, name)) };
    });
    this.pictures = {
      probabilities: new Picture(320, 170, "Probabilities"),
      curve: new Picture(320, 120, "The objective over the steps"),
      code: new Picture(320, 150, "The code, dimension by dimension"),
      map: new Picture(320, 260, "Map of test codes"),
    };
    this.captions = Object.fromEntries(Object.keys(this.pictures).map((name) => [name, el("figcaption")]));
    const charts = Object.entries(this.pictures).map(([name, { svg }]) => el("figure", {}, this.captions[name], svg));
    this.problem = el("p", { class: "lab-problem", hidden: true });
    this.body = el("div", {}, this.verdict, el("div", { class: "lab-images" }, ...this.images.map(({ box }) => box)), ...charts);
    this.element = el("section", { class: "lab-side", "aria-label": `Network ${letter}` }, this.title, this.problem, this.body);
  }

  fail(sentence) {
    this.problem.textContent = sentence;
    this.problem.hidden = false;
    this.body.hidden = true;
    this.result = null;
  }

  // A new attack, as worker.js answers it.
  take(result, x, shape, objective) {
    Object.assign(this, { result, x, shape, objective });
    this.problem.hidden = true;
    this.body.hidden = false;
    const { about, clean, frames, points } = result;
    this.title.textContent = `${this.letter}: ${about.name}`;
    this.captions.probabilities.textContent = `Probabilities of the classes${about.samples ? `, averaged over ${about.samples} samples of the code` : ""}`;
    this.captions.curve.textContent = `${TITLES[objective]}, step by step`;
    this.captions.code.textContent = about.gaussian ? "The code: mean ± spread of every dimension" : "The code, every dimension (a point: it has no spread)";
    this.captions.map.textContent = "The code on the map of test codes, each drawn as its digit";
    this.most = Math.max(...[clean, ...frames].flatMap((p) => Array.from(p.mean, (m, k) => Math.abs(m) + (p.scale ? p.scale[k] : 0))));
    this.at = map(this.pictures.map, points, [clean.place, ...frames.map(({ place }) => place)]);
    drawImage(this.images[0].canvas, x, shape);
  }

  get steps() {
    return this.result ? this.result.frames.length - 1 : 0;
  }

  // Shows the attack after `step` steps.
  show(step) {
    if (!this.result) return;
    const { clean, frames, about } = this.result, at = Math.min(step, this.steps), now = frames[at], { pictures } = this;
    const [before, after] = [largest(clean.said), largest(now.said)], fooled = before !== after;
    const words = (p, c) => `${c} (${percent(p[c])})`;
    this.verdict.textContent = `Says ${words(clean.said, before)} of x, and ${words(now.said, after)} of x′. ` +
      `The code has moved ${figures(now.moved)} distances between classes` +
      `${now.nearest === clean.nearest ? "." : `; it is now nearest to the codes of ${now.nearest}.`}`;
    this.verdict.classList.toggle("lab-fooled", fooled);
    drawImage(this.images[1].canvas, now.x, this.shape);
    const most = drawChange(this.images[2].canvas, now.x, this.x, this.shape);
    this.images[1].canvas.setAttribute("aria-label", `x′, after ${at} steps`);
    this.images[2].canvas.setAttribute("aria-label", `the change x′ − x, at most ${figures(most)} in a pixel`);
    probabilities(pictures.probabilities, clean.said, now.said);
    pictures.probabilities.label(`Probabilities: clean ${words(clean.said, before)}, attacked ${words(now.said, after)}`);
    const scores = frames.map(({ score }) => score);
    curve(pictures.curve, scores, at, UNITS[this.objective]);
    pictures.curve.label(`${TITLES[this.objective]}: ${figures(scores[0])} at the start, ${figures(scores[at])} after ${at} steps`);
    code(pictures.code, clean, now, this.most || 1);
    const shifts = Array.from(now.mean, (m, k) => Math.abs(m - clean.mean[k])), k = largest(shifts);
    pictures.code.label(`The code of ${now.mean.length} dimensions; dimension ${k + 1} has moved most, ` +
      `from ${figures(clean.mean[k])} to ${figures(now.mean[k])}`);
    path(pictures.map, this.at, clean.place, frames.slice(0, at + 1).map(({ place }) => place));
    pictures.map.label(`Map of test codes of ${about.name}: the code was nearest to class ${clean.nearest}, and is nearest to class ${now.nearest}`);
  }

  // The outcome in a few words, for the line that a screen reader hears.
  summary(step) {
    if (!this.result) return `${this.letter}: no result`;
    const { clean, frames, about } = this.result;
    return `${about.name}: ${largest(clean.said)} becomes ${largest(frames[Math.min(step, this.steps)].said)}`;
  }
}
