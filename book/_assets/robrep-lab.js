// Opens the lab where a page has a <div class="robrep-lab">. Nothing is loaded before a reader asks for it, by the button
// or by a link that holds a state.
(() => {
  "use strict";
  const PANEL = new URL("lab/panel.js", document.currentScript.src).href;

  async function open(box, button) {
    button.disabled = true;
    button.textContent = "Loading the lab …";
    box.querySelector(".robrep-lab-problem")?.remove();
    try {
      if (location.protocol === "file:") {
        throw new Error("The lab needs a web server, because a browser does not let a page that was opened as a file read other " +
          "files. Run python -m http.server in the folder of the site, and open http://localhost:8000.");
      }
      const { open: start } = await import(PANEL).catch(() => {
        throw new Error("The lab's scripts could not be loaded.");
      });
      await start(box);
    } catch (error) {
      const sentence = document.createElement("p");
      Object.assign(sentence, { className: "robrep-lab-problem", textContent: error.message });
      sentence.setAttribute("role", "alert");
      button.after(sentence);
      button.disabled = false;
      button.textContent = "Open the lab";
    }
  }

  function start() {
    document.querySelectorAll(".robrep-lab").forEach((box) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "robrep-lab-open", textContent: "Open the lab" });
      button.addEventListener("click", () => open(box, button));
      box.append(button);
      if (location.hash.startsWith("#lab?")) open(box, button);
    });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
