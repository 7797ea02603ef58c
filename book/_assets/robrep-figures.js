// Draws the plotly figures of a page, and marks the boxes that can be scrolled. Each figure is a <div class="robrep-figure">
// that holds its JSON; plotly is loaded once, from this site, when the first figure nears the view, and the colours follow
// the page's light or dark theme.
(() => {
  "use strict";
  const PLOTLY = new URL("plotly.min.js", document.currentScript.src).href;
  const NARROW = 600; // px of figure width below which the layout is rearranged
  const WIDE = 720; // px of figure width that heights are chosen for
  // distance from the view at which a figure is drawn: a deck that is being printed draws all
  const NEAR = new URLSearchParams(location.search).has("print-pdf") ? "1000000px" : "800px";
  const THEMES = {
    light: {
      paper: "#ffffff", plot: "#ffffff", text: "#24292f", faint: "#57606a", grid: "#e4e7eb", line: "#b4bbc3",
      control: "#f3f5f7", active: "#d5dde6", hover: "#ffffff",
    },
    dark: {
      paper: "#14181e", plot: "#14181e", text: "#ced6dd", faint: "#9aa5b1", grid: "#2d353f", line: "#56616e",
      control: "#222832", active: "#3c4858", hover: "#222832",
    },
  };

  let plotly = null;
  const loadPlotly = () =>
    (plotly ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = PLOTLY;
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => reject(new Error(`could not load ${PLOTLY}`));
      document.head.append(script);
    }));

  const themeName = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

  // A copy of `base` in which the leaves of `over` win.
  function merged(base, over) {
    const result = { ...base };
    for (const [key, value] of Object.entries(over)) {
      result[key] = isObject(value) ? merged(isObject(result[key]) ? result[key] : {}, value) : value;
    }
    return result;
  }

  // The figure's own template with every colour of page furniture set for the theme; the data keep their colours.
  function template(own, theme) {
    const axis = {
      gridcolor: theme.grid, linecolor: theme.line, zerolinecolor: theme.line, zerolinewidth: 1, tickcolor: theme.line,
      tickfont: { color: theme.faint }, title: { font: { color: theme.text } }, automargin: true,
    };
    const bar = { tickcolor: theme.line, outlinecolor: theme.line, tickfont: { color: theme.faint } };
    const layout = {
      paper_bgcolor: theme.paper,
      plot_bgcolor: theme.plot,
      font: { color: theme.text },
      title: { font: { color: theme.text } },
      xaxis: axis,
      yaxis: axis,
      coloraxis: { colorbar: bar },
      legend: { bgcolor: "rgba(0,0,0,0)", font: { color: theme.text } },
      hoverlabel: { bgcolor: theme.hover, bordercolor: theme.line, font: { color: theme.text } },
      annotationdefaults: { font: { color: theme.text }, arrowcolor: theme.faint },
      shapedefaults: { line: { color: theme.line } },
      sliderdefaults: {
        bgcolor: theme.active, activebgcolor: theme.line, bordercolor: theme.line, tickcolor: theme.line,
        font: { color: theme.faint }, currentvalue: { font: { color: theme.text } },
      },
      updatemenudefaults: { bgcolor: theme.control, bordercolor: theme.line, font: { color: theme.text } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.faint, activecolor: theme.text },
    };
    const data = { ...(own.data ?? {}) };
    for (const kind of ["heatmap", "contour"]) {
      data[kind] = (data[kind] ?? [{}]).map((trace) => merged(trace, { colorbar: bar }));
    }
    const whisker = { color: theme.faint }; // a scatter's whiskers have the colour of its markers
    data.bar = (data.bar ?? [{}]).map((trace) => merged(trace, { error_x: whisker, error_y: whisker }));
    data.scatter = (data.scatter ?? [{}]).map((trace) => merged(trace, { marker: { colorbar: bar } }));
    return { ...own, data, layout: merged(own.layout ?? {}, layout) };
  }

  // Pictures keep their shape, so a narrow figure needs less height; what stands around them keeps its own.
  function shrunk(layout, box) {
    const height = layout.height ?? 450;
    const around = (layout.margin?.t ?? 30) + (layout.margin?.b ?? 10) + (layout.sliders?.length ? 90 : 0);
    return around + (height - around) * Math.min(1, box.clientWidth / WIDE);
  }

  const isNarrow = (box) => box.clientWidth < NARROW;

  // On a narrow screen: no room for a legend at the side, touching must scroll the page, and less margin.
  function arranged(data, layout, box) {
    const result = { ...layout, autosize: true, template: template(layout.template ?? {}, THEMES[themeName()]) };
    delete result.width;
    if (!isNarrow(box)) return result;
    result.dragmode = false;
    if (data.some((trace) => trace.type === "image")) result.height = shrunk(layout, box);
    if (layout.meta?.numbered) result.height = 1.3 * layout.height; // its legend is longer
    const margin = layout.margin ?? {};
    result.margin = { ...margin, l: Math.min(margin.l ?? 80, 48), r: Math.min(margin.r ?? 80, 12) };
    if (layout.legend?.orientation !== "h") {
      result.legend = { ...(layout.legend ?? {}), orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" };
    }
    return result;
  }

  // Names beside points cover each other on a narrow screen: there they are numbers, which the legend explains.
  function numbered(data) {
    let count = 0;
    return data.map((trace) => {
      const numbers = trace.text.map(() => `${++count}`);
      const told = trace.text.map((name, k) => `${numbers[k]} ${name}`);
      const lines = told.reduce((all, each, k) => all + (k === 0 ? "" : k % 2 ? ", " : ",<br>") + each, "");
      return {
        ...trace,
        name: `${trace.name}: ${lines}`,
        text: numbers,
        hovertext: trace.text,
        hovertemplate: trace.hovertemplate.replace("%{text}", "%{hovertext}"),
      };
    });
  }

  // Plotly's sliders and menus answer to a pointer alone. Each gets a native control for keys and screen readers, unseen:
  // the style sheet outlines the figure whose control has the focus.
  function addControls(Plotly, stage, box) {
    const run = (step) => Plotly[step.method ?? "restyle"](stage, ...step.args);
    const words = (html) => html.replace(/<[^>]*>/g, "").replace(/[\s=:]+$/, "");
    const add = (tag, label) => {
      const control = document.createElement(tag);
      control.className = "robrep-control";
      control.setAttribute("aria-label", label);
      box.append(control);
      return control;
    };
    (stage.layout.sliders ?? []).forEach(({ steps, active = 0, currentvalue }, index) => {
      const range = add("input", words(currentvalue?.prefix ?? "") || "slider");
      const show = (at) => {
        range.value = at;
        range.setAttribute("aria-valuetext", words(steps[at].label));
      };
      Object.assign(range, { type: "range", min: 0, max: steps.length - 1, step: 1 });
      show(active);
      range.addEventListener("input", async () => {
        const at = Number(range.value);
        show(at);
        await run(steps[at]);
        await Plotly.relayout(stage, { [`sliders[${index}].active`]: at });
      });
      stage.on("plotly_sliderchange", ({ slider, step }) => slider._index === index && show(step._index));
    });
    (stage.layout.updatemenus ?? []).forEach(({ buttons, active = 0 }, index) => {
      const select = add("select", "shown in the figure");
      select.append(...buttons.map(({ label }) => new Option(words(label))));
      select.selectedIndex = active;
      select.addEventListener("change", async () => {
        await run(buttons[select.selectedIndex]);
        await Plotly.relayout(stage, { [`updatemenus[${index}].active`]: select.selectedIndex });
      });
      stage.on("plotly_buttonclicked", ({ menu, active: at }) => {
        if (menu._index === index) select.selectedIndex = at;
      });
    });
  }

  async function draw(box) {
    const { data, layout, frames } = JSON.parse(box.querySelector("script").textContent);
    const Plotly = await loadPlotly();
    const stage = document.createElement("div");
    box.append(stage);
    const config = { responsive: true, displaylogo: false, displayModeBar: isNarrow(box) ? false : "hover" };
    const traces = layout.meta?.numbered && isNarrow(box) ? numbered(data) : data;
    await Plotly.newPlot(stage, { data: traces, layout: arranged(data, layout, box), frames, config });
    addControls(Plotly, stage, box);
    box.style.minHeight = "";
    box.dataset.drawn = themeName();
    box.redraw = async () => {
      // a figure that was moved keeps its place: only the template changes
      await Plotly.relayout(stage, { template: template(layout.template ?? {}, THEMES[themeName()]) });
      box.dataset.drawn = themeName();
    };
    if (box.dataset.drawn !== themeName()) await box.redraw();
  }

  // Code and tables that go on beyond the edge of their box: the style sheet fades them there.
  const SCROLLING = ".bd-article div.highlight pre, .bd-article .pst-scrollable-table-container, .bd-article .cell_output, " +
    ".bd-article .cell_output .text_html, .bd-article .cell_output .text_html > div";
  function markEdges() {
    const mark = (box) => {
      const style = getComputedStyle(box);
      const more = (overflow, from, shown, all) => /auto|scroll/.test(overflow) && from + shown < all - 2;
      box.classList.toggle("robrep-right", more(style.overflowX, box.scrollLeft, box.clientWidth, box.scrollWidth));
      box.classList.toggle("robrep-below", more(style.overflowY, box.scrollTop, box.clientHeight, box.scrollHeight));
    };
    const sized = new ResizeObserver((entries) => entries.forEach(({ target }) => mark(target)));
    document.querySelectorAll(SCROLLING).forEach((box) => {
      box.addEventListener("scroll", () => mark(box), { passive: true });
      sized.observe(box);
    });
  }

  function start() {
    // the theme puts tables into boxes of their own while the page is loading
    if (document.readyState === "complete") markEdges();
    else window.addEventListener("load", markEdges);
    const boxes = [...document.querySelectorAll(".robrep-figure")];
    const watcher = new IntersectionObserver(
      (entries) => {
        for (const entry of entries.filter((each) => each.isIntersecting)) {
          watcher.unobserve(entry.target);
          draw(entry.target).catch((error) => {
            entry.target.insertAdjacentHTML("beforeend", '<p class="robrep-figure-text"></p>');
            entry.target.lastElementChild.textContent = `Figure: ${entry.target.getAttribute("aria-label")}`;
            console.error(error);
          });
        }
      },
      { rootMargin: NEAR },
    );
    boxes.forEach((box) => watcher.observe(box));
    new MutationObserver(() => boxes.forEach((box) => box.redraw?.())).observe(document.documentElement, {
      attributeFilter: ["data-theme"],
    });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
