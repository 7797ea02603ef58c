// "The same image, all encoders": which code leaves first as the radius grows.

import { el, figures } from "./charts.js";
import { LIMITS } from "./state.js";

const COUNT = 8; // radii

export class Sweep {
  // engine: asks the worker; current: () -> { x, label, settings, seed, models } for the image and attack of the panel.
  constructor(engine, current) {
    Object.assign(this, { engine, current, running: 0 });
    this.button = el("button", { type: "button", onclick: () => this.run() }, "Attack all");
    this.status = el("p", { role: "status", class: "lab-note" });
    this.box = el("div", { class: "lab-table", tabindex: 0, role: "region", "aria-label": "How far every code moves" });
    this.note = el("p", {}, "");
    this.element = el("details", { class: "lab-fold" }, el("summary", {}, "The same image, all encoders"), this.note,
      this.button, this.status, this.box);
    this.box.hidden = true;
  }

  // Says what pressing the button costs.
  offer(models) {
    const megabytes = models.reduce((sum, { bytes }) => sum + bytes, 0) / 1e6;
    this.note.textContent = `Which code leaves first as the radius grows? The attack set above, on this image, against all ` +
      `${models.length} networks for such images (${megabytes.toFixed(1)} MB are loaded).`;
    this.running += 1; // what is still under way belongs to another set of images
    this.box.hidden = true;
    this.status.textContent = "";
  }

  async run() {
    const { x, label, settings, seed, models } = this.current(), run = (this.running += 1);
    if (!x) return void (this.status.textContent = "The drawing is empty: draw a digit first.");
    const most = Math.min(LIMITS[settings.norm].most, 2 * settings.eps) || LIMITS[settings.norm].most / 2;
    const radii = Array.from({ length: COUNT }, (_, k) => (most * (k + 1)) / COUNT), rows = [], problems = [];
    this.button.disabled = true;
    for (const [k, { id, name, chapter }] of models.entries()) {
      this.status.textContent = `Attacking ${name}, ${k + 1} of ${models.length} …`;
      try {
        const { ends } = await this.engine.ask("sweep", { model: id, x, label, settings, seed, radii });
        rows.push({ name, chapter, ends });
      } catch (error) {
        problems.push(error.message);
      }
      if (run !== this.running) break;
      this.#show(rows, radii);
    }
    this.button.disabled = false;
    if (run !== this.running) return;
    const [first] = [...rows].sort((a, b) => leaves(a) - leaves(b));
    this.status.textContent = [
      first && Number.isFinite(leaves(first)) ? `${first.name} (${first.chapter}) leaves first, at a radius of ${figures(leaves(first))}.`
        : "No code leaves its class within these radii.", ...problems].join(" ");
  }

  #show(rows, radii) {
    const order = [...rows].sort((a, b) => leaves(a) - leaves(b) || b.ends.at(-1).moved - a.ends.at(-1).moved);
    const head = el("tr", {}, el("th", { scope: "col" }, "network"), el("th", { scope: "col" }, "leaves at"),
      el("th", { scope: "col" }, "fooled at"), ...radii.map((eps) => el("th", { scope: "col" }, `ε ${figures(eps)}`)));
    const body = order.map((row) => el("tr", {},
      el("th", { scope: "row" }, row.name, el("small", {}, row.chapter)),
      ...[leaves(row), fooled(row)].map((eps) => el("td", {}, Number.isFinite(eps) ? figures(eps) : "–")),
      ...row.ends.map(({ moved, left, fooled: wrong }) => {
        const cell = el("td", { class: left ? "lab-left" : null }, `${moved.toFixed(2)}${wrong ? " ✗" : ""}`);
        cell.style.setProperty("--share", `${Math.min(100, Math.round(60 * moved))}%`);
        return cell;
      })));
    this.box.replaceChildren(el("table", {}, el("caption", {},
      "How far the code has moved, in distances between classes. Bold: nearest to another class. ✗: another prediction."),
      el("thead", {}, head), el("tbody", {}, ...body)));
    this.box.hidden = false;
  }
}

const leaves = ({ ends }) => ends.find(({ left }) => left)?.eps ?? Infinity;
const fooled = ({ ends }) => ends.find(({ fooled: wrong }) => wrong)?.eps ?? Infinity;
