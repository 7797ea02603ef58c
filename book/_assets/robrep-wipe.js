// Lays the two pictures of a <div class="robrep-wipe"> over each other, with a divider that moves by mouse, touch or keys.
// Without this script both stand side by side. What the sides are called comes from data-left and data-right.
(() => {
  "use strict";
  const START = 50; // percent of the width that shows the first picture

  function wipe(box) {
    const pictures = [...box.querySelectorAll("img")];
    if (pictures.length !== 2) return;
    const { left = "first", right = "second" } = box.dataset;
    const stage = document.createElement("div");
    stage.className = "robrep-wipe-stage";
    const old = pictures[0].closest("p");
    old.replaceWith(stage);
    stage.append(...pictures);
    for (const [side, name] of [["left", left], ["right", right]]) {
      const label = document.createElement("span");
      Object.assign(label, { className: `robrep-wipe-name robrep-wipe-${side}`, textContent: name });
      label.setAttribute("aria-hidden", "true");
      stage.append(label);
    }
    const line = document.createElement("span");
    line.className = "robrep-wipe-line";
    const control = document.createElement("input");
    Object.assign(control, { type: "range", min: "0", max: "100", step: "1", className: "robrep-wipe-control" });
    control.setAttribute("aria-label", `Divider between the ${left} and the ${right} picture`);
    const show = () => {
      stage.style.setProperty("--wipe", `${control.value}%`);
      control.setAttribute("aria-valuetext", `${control.value} % ${left}, ${100 - control.value} % ${right}`);
    };
    control.addEventListener("input", show);
    control.value = START;
    show();
    stage.append(line, control);
  }

  const start = () => document.querySelectorAll(".robrep-wipe").forEach(wipe);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
