"use strict";
// Hover, zoom, smoothing, axes and legend toggles for the charts that charts.py drew. Every figure holds its data as
// JSON; its lines, dashes and marks are taken from its legend. Without this script the page shows the same pictures.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SAVED = "puna " + location.pathname;
  const view = { unit: "", logX: false, zoom: null, smooth: 25 }; // smoothing: thousandths of the points in a mean
  const charts = [];

  function make(parent, name, attributes = {}, text = "") {
    const isSvg = parent instanceof SVGElement;
    const element = isSvg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    parent.append(element);
    return element;
  }

  // ---- axes: as axes.py ----

  function roundTicks(low, high, about) {
    const rough = (high - low) / about || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
    const ticks = [];
    for (let at = Math.ceil(low / step - 1e-9); at <= Math.floor(high / step + 1e-9); at++) ticks.push(at * step);
    return ticks;
  }

  function logTicks(low, high) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), ticks = [];
    const factors = last - first > 3 ? [1] : [1, 2, 5];
    for (let power = first; power <= last; power++) for (const factor of factors) ticks.push(factor * 10 ** power);
    return ticks.filter((tick) => tick >= low * 0.9999 && tick <= high * 1.0001);
  }

  function axis(low, high, start, end, isLog, about) {
    const scale = isLog ? Math.log10 : (value) => value;
    const span = scale(high) - scale(low) || 1;
    const onLog = isLog ? logTicks(low, high) : [];
    return {
      low, high, start, end,
      ticks: onLog.length > 2 ? onLog : roundTicks(low, high, about),
      place: (value) => start + ((scale(value) - scale(low)) / span) * (end - start),
      value: (place) => {
        const at = scale(low) + ((place - start) / (end - start)) * span;
        return isLog ? 10 ** at : at;
      },
    };
  }

  function short(value) {
    const size = Math.abs(value);
    for (const [divisor, unit] of [[1e15, ""], [1e12, " T"], [1e9, " B"], [1e6, " M"], [1e4, " k"]]) {
      if (size < divisor) continue;
      if (divisor === 1e15) return value.toExponential(1);
      return String(+(value / (divisor === 1e4 ? 1e3 : divisor)).toPrecision(4)) + unit;
    }
    return size > 0 && size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(5));
  }

  // ---- data ----

  function places(one) {
    if (view.unit === "steps") return one.steps;
    return view.unit === "tokens" ? one.tokens : one.tokens.map((tokens) => tokens * one.flops);
  }

  function smoothed(values, share) {
    const half = Math.floor((values.length * share) / 2000);
    if (half < 1) return values;
    const sums = [0], counts = [0];
    values.forEach((value, at) => {
      sums.push(sums[at] + (value ?? 0));
      counts.push(counts[at] + (value === null ? 0 : 1));
    });
    return values.map((value, at) => {
      if (value === null) return null;
      const reach = Math.min(half, at, values.length - 1 - at);
      const first = at - reach, end = at + reach + 1;
      return (sums[end] - sums[first]) / (counts[end] - counts[first]);
    });
  }

  function points(chart) {
    return chart.data.series.map((one) => {
      const base = one.style === "mean" ? chart.data.series[one.of] : one;
      if (one.style !== "mean") return { ...one, x: places(base) };
      const steps = Math.round((base.steps.at(-1) - base.steps[0] + 1) / base.y.length); // of each point
      const window = (2 * Math.floor((base.y.length * view.smooth) / 2000) + 1) * steps;
      const name = one.name.replace(/centred mean of \d+ steps?$/, `centred mean of ${window} steps`);
      return { ...one, name, x: places(base), y: smoothed(base.y, view.smooth) };
    });
  }

  const isDrawn = (chart, value) => value !== null && (value > 0 || !chart.log);

  // ---- drawing ----

  function draw(chart) {
    const { data, svg } = chart;
    const [width, height, left, right, top, bottom] = data.size;
    const drawn = points(chart);
    const shown = drawn.filter((_, place) => !chart.hidden.has(place));
    const all = shown.flatMap((one) => [one.x[0], one.x[one.x.length - 1]]).filter(Number.isFinite);
    const positive = shown.flatMap((one) => one.x.find((value) => value > 0) ?? []);
    const from = view.logX ? Math.min(...positive) : 0;
    const [low, high] = view.zoom ?? [from, Math.max(...all)];
    if (!(high > low)) return;
    const x = axis(Math.max(low, from), high, left, width - right, view.logX, (width - left - right) / 90);
    const y = axisY(chart, shown, x, height - bottom, top);
    chart.x = x;
    chart.y = y;
    chart.drawn = drawn;
    drawn.forEach((one, place) => { chart.items[place].lastChild.textContent = " " + one.name; });

    const plot = svg.querySelector(".plot");
    plot.replaceChildren();
    const label = (atX, atY, anchor, kind, text) =>
      make(plot, "text", { x: atX, y: atY, "text-anchor": anchor, class: kind }, text);
    for (const tick of y.ticks) {
      make(plot, "line", { x1: left, x2: width - right, y1: y.place(tick), y2: y.place(tick), class: "grid" });
      label(left - 8, y.place(tick) + 4, "end", "tick", short(tick));
    }
    for (const tick of x.ticks) {
      make(plot, "line", { x1: x.place(tick), x2: x.place(tick), y1: y.start, y2: y.start + 5, class: "axis" });
      label(x.place(tick), y.start + 20, "middle", "tick", short(tick));
    }
    make(plot, "line", { x1: left, x2: width - right, y1: y.start, y2: y.start, class: "axis" });
    label(2, 18, "start", "name", data.name + (chart.log ? ", log scale" : ""));
    label(width - right, height - 8, "end", "name", view.unit + (view.logX ? ", log scale" : ""));

    const inside = make(plot, "g", { "clip-path": `url(#${chart.clip})` });
    drawn.forEach((one, place) => {
      if (!chart.hidden.has(place)) drawSeries(chart, inside, one, chart.keys[place], x, y);
    });
    for (const [, level] of data.levels) {
      if (!isDrawn(chart, level)) continue;
      const at = y.place(level);
      make(inside, "line", { x1: left, x2: width - right, y1: at, y2: at, class: "level", "stroke-dasharray": "5 4" });
    }
  }

  function axisY(chart, shown, x, start, end) {
    const values = [];
    for (const one of shown) {
      const seen = [];
      one.x.forEach((at, place) => {
        if (at < x.low || at > x.high) return;
        const band = one.band ? one.band[place] ?? 0 : 0;
        for (const value of [one.low?.[place], one.high?.[place], one.y[place] - band, one.y[place] + band])
          if (value !== undefined && one.y[place] !== null && isDrawn(chart, value)) seen.push(value);
      });
      if (!seen.length) continue;
      seen.sort((a, b) => a - b);
      // Behind a mean a tenth of a per cent at either end may be cut, as in the picture without script.
      const cut = one.style === "raw" && !chart.log && seen.length > 50 ? Math.floor(seen.length * 0.001) : 0;
      values.push(seen[cut], seen[seen.length - 1 - cut]);
    }
    if (!view.zoom) for (const [, level] of chart.data.levels) if (isDrawn(chart, level)) values.push(level);
    let low = Math.min(...values), high = Math.max(...values);
    if (!Number.isFinite(low)) [low, high] = chart.data.y;
    if (chart.log) return axis(low / 1.1, high * 1.1, start, end, true, 5);
    if (chart.data.zero && !view.zoom) low = Math.min(low, 0);
    const pad = (high - low || Math.abs(high) || 1) * 0.04;
    return axis(low === 0 ? 0 : low - pad, high + pad, start, end, false, 5);
  }

  function drawSeries(chart, parent, one, key, x, y) {
    const dots = [];
    let line = "", up = "", back = "", isDown = false;
    one.x.forEach((at, place) => {
      if (!isDrawn(chart, one.y[place]) || !(at >= 0) || (view.logX && at <= 0)) {
        isDown = false;
        return;
      }
      const across = x.place(at).toFixed(1);
      for (const value of one.low ? [one.low[place], one.high[place]] : [one.y[place]]) {
        if (!isDrawn(chart, value)) continue;
        line += `${isDown ? "L" : "M"}${across} ${y.place(value).toFixed(1)}`;
        isDown = true;
      }
      if (one.band) {
        up += `${up ? "L" : "M"}${across} ${y.place(one.y[place] + one.band[place]).toFixed(1)}`;
        back = `L${across} ${y.place(one.y[place] - one.band[place]).toFixed(1)}` + back;
      }
      if (at >= x.low && at <= x.high) dots.push([across, y.place(one.y[place]).toFixed(1)]);
    });
    if (up) make(parent, "path", { d: up + back + "z", class: `c${one.colour % 7} band`, "fill-opacity": 0.18 });
    const stroke = key[0].cloneNode();
    stroke.setAttribute("d", line);
    parent.append(stroke);
    if (!key[1] || dots.length > 100) return;
    for (const [across, along] of dots) {
      const dot = key[1].cloneNode();
      dot.setAttribute("transform", `translate(${across} ${along})`);
      parent.append(dot);
    }
  }

  const drawAll = () => {
    charts.forEach(draw);
    try { sessionStorage.setItem(SAVED, JSON.stringify(view)); } catch { /* a page that may store nothing */ }
  };

  // ---- pointer ----

  function across(chart, event) {
    const box = chart.svg.getBoundingClientRect();
    const scale = Math.min(box.width / chart.data.size[0], box.height / chart.data.size[1]);
    return (event.clientX - box.left - (box.width - chart.data.size[0] * scale) / 2) / scale;
  }

  function hover(chart, event) {
    if (!chart.x) draw(chart);
    if (!chart.x) return;
    const { x } = chart, at = across(chart, event);
    if (at < x.start || at > x.end) return leave(chart);
    const value = x.value(at), rows = [];
    chart.drawn.forEach((one, place) => {
      if (chart.hidden.has(place)) return;
      let best = -1;
      one.x.forEach((there, index) => {
        if (one.y[index] === null) return;
        if (best < 0 || Math.abs(there - value) < Math.abs(one.x[best] - value)) best = index;
      });
      if (best < 0 || Math.abs(x.place(one.x[best]) - at) > 60) return;
      rows.push([one.colour % 7, `${one.name}: ${short(one.y[best])}${one.band ? " ± " + short(one.band[best]) : ""}`]);
    });
    chart.cross.setAttribute("x1", at);
    chart.cross.setAttribute("x2", at);
    chart.cross.setAttribute("visibility", "visible");
    chart.tip.replaceChildren();
    make(chart.tip, "div", {}, `${short(value)} ${view.unit}`);
    for (const [colour, text] of rows.slice(0, 16)) {
      const row = make(chart.tip, "div");
      make(row, "i", { class: `c${colour}` });
      row.append(text);
    }
    chart.tip.hidden = false;
    const box = chart.figure.getBoundingClientRect(), own = chart.tip.getBoundingClientRect();
    const side = event.clientX - box.left;
    chart.tip.style.left = `${Math.max(0, side + 16 + own.width > box.width ? side - own.width - 12 : side + 16)}px`;
    chart.tip.style.top = `${event.clientY - box.top + 14}px`;
  }

  function leave(chart) {
    chart.tip.hidden = true;
    chart.cross.setAttribute("visibility", "hidden");
  }

  function listen(chart) {
    const { svg } = chart;
    let began = null;
    const chosen = make(svg, "rect", { class: "chosen", y: chart.data.size[4], width: 0,
      height: chart.data.size[1] - chart.data.size[4] - chart.data.size[5] });
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      began = across(chart, event);
      svg.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    svg.addEventListener("pointermove", (event) => {
      hover(chart, event);
      if (began === null) return;
      const at = across(chart, event);
      chosen.setAttribute("x", Math.min(began, at));
      chosen.setAttribute("width", Math.abs(at - began));
    });
    svg.addEventListener("pointerup", (event) => {
      const at = across(chart, event), { x } = chart;
      chosen.setAttribute("width", 0);
      if (began !== null && x && Math.abs(at - began) > 5) {
        const ends = [began, at].map((place) => x.value(Math.min(Math.max(place, x.start), x.end)));
        view.zoom = ends.sort((a, b) => a - b);
        drawAll();
      }
      began = null;
    });
    svg.addEventListener("pointerleave", () => leave(chart));
    svg.addEventListener("dblclick", reset);
  }

  function reset() {
    view.zoom = null;
    drawAll();
  }

  // ---- controls ----

  function addTools(first) {
    const tools = document.createElement("div");
    tools.className = "tools";
    first.before(tools);
    const labelled = (text) => make(tools, "label", {}, text);
    const unit = make(labelled("Horizontal axis "), "select");
    for (const name of ["tokens", "steps", "FLOPs"]) make(unit, "option", {}, name);
    unit.value = view.unit;
    unit.addEventListener("change", () => { view.unit = unit.value; reset(); });
    const log = make(labelled("log "), "input", { type: "checkbox" });
    log.checked = view.logX;
    log.addEventListener("change", () => { view.logX = log.checked; reset(); });
    const slider = make(labelled("Smoothing "), "input", { type: "range", min: 0, max: 200, value: view.smooth });
    slider.addEventListener("input", () => { view.smooth = +slider.value; drawAll(); });
    make(tools, "button", { type: "button" }, "Whole run").addEventListener("click", reset);
    make(tools, "span", {}, "Drag to zoom; select a name in a legend to hide it.");
  }

  function toggle(chart, item, place) {
    const change = () => {
      if (!chart.hidden.delete(place)) chart.hidden.add(place);
      item.setAttribute("aria-pressed", !chart.hidden.has(place));
      draw(chart);
    };
    for (const [key, value] of [["role", "button"], ["tabindex", 0], ["aria-pressed", true]]) item.setAttribute(key, value);
    item.addEventListener("click", change);
    item.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      change();
    });
  }

  document.querySelectorAll("figure.chart").forEach((figure, number) => {
    const block = figure.querySelector("script[type='application/json']");
    if (!block) return;
    const svg = figure.querySelector("svg"), data = JSON.parse(block.textContent);
    const [width, height, left, right, top, bottom] = data.size;
    const chart = { figure, svg, data, log: data.log, hidden: new Set(), clip: `clip-${number}` };
    const items = [...figure.querySelectorAll(".legend li[data-series]")];
    chart.items = items;
    chart.keys = items.map((item) => [...item.querySelectorAll("path")]);
    items.forEach((item, place) => toggle(chart, item, place));
    make(make(svg, "clipPath", { id: chart.clip }), "rect",
      { x: left, y: top - 6, width: width - left - right, height: height - top - bottom + 12 });
    chart.cross = make(svg, "line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
    chart.tip = make(figure, "div", { class: "tip", hidden: "" });
    const button = make(figure.querySelector("figcaption"), "button", { type: "button", "aria-pressed": data.log }, "log");
    button.addEventListener("click", () => {
      chart.log = !chart.log;
      button.setAttribute("aria-pressed", chart.log);
      draw(chart);
    });
    listen(chart);
    charts.push(chart);
  });
  if (!charts.length) return;
  view.unit = charts[0].data.unit;
  let isSaved = false;
  if (document.querySelector("meta[http-equiv='refresh']")) {
    try {
      const saved = JSON.parse(sessionStorage.getItem(SAVED));
      isSaved = saved !== null;
      Object.assign(view, saved);
    } catch { /* nothing was stored */ }
  }
  addTools(charts[0].figure);
  if (isSaved) drawAll();
})();
