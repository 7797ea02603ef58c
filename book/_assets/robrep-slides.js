// Starts a deck once its formulas are typeset: MathJax reads its settings from here, reveal.js begins when it is done.
(() => {
  "use strict";

  // The speaker's window has no MathJax: there the browser draws the formulas itself, from MathML.
  function speakersFormulas() {
    document.querySelectorAll("aside.notes mjx-container").forEach((formula) => {
      const math = formula.querySelector("mjx-assistive-mml math");
      if (math) formula.replaceWith(math);
    });
  }

  window.MathJax = {
    chtml: { matchFontHeight: false },
    options: { enableMenu: false, processHtmlClass: "math", ignoreHtmlClass: "mathjax_ignore" },
    startup: {
      pageReady: async () => {
        await MathJax.startup.defaultPageReady();
        speakersFormulas();
        await Reveal.initialize({
          width: 1280, height: 720, margin: 0.02, center: false, hash: true, slideNumber: "c/t", transition: "none",
          viewDistance: 2, controls: false, pdfMaxPagesPerSlide: 1, pdfSeparateFragments: false, plugins: [RevealNotes],
        });
      },
    },
  };
})();
