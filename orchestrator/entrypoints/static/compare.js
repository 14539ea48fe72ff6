// The curves of several jobs over each other: one metric at a time, a colour per job, as in the table of results.
"use strict";
(() => {
  const root = document.getElementById("compare"), box = document.getElementById("overlay");
  const metrics = document.getElementById("metrics"), values = document.getElementById("values");
  const note = document.getElementById("curves-note");
  const jobs = JSON.parse(root.dataset.jobs);
  const AGAIN_MS = 5000, HEIGHT = 320, ROWS = 12, NAME = 28;
  let chart = null, drawn = "", found = null, frame = 0, asked = 0, draws = 0;

  const chosen = () => metrics.querySelector(":checked");
  const words = () => chosen().nextElementSibling.textContent;
  // Colours come from the style sheet, for the current colour scheme.
  const probe = document.createElement("span");
  probe.hidden = true;
  root.append(probe);
  const colour = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  const short = (v) => {
    if (v == null) return "–";
    if (found.metric === "memory") return `${(v / 2 ** 30).toFixed(2)} GiB`;
    return Math.abs(v) < 1e-3 && v !== 0 ? v.toExponential(1) : Number(v.toPrecision(4)).toString();
  };
  const named = (job) => job.name.length > NAME ? `${job.name.slice(0, NAME - 1)}…` : job.name;
  const step = (v) => v == null ? "–" : Math.round(v).toLocaleString("en");

  const make = () => {
    chart?.destroy();
    const axis = {stroke: colour("muted"), grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1}, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif"};
    // A line of one point would be invisible.
    const lone = (stroke) => ({show: (u, i) => u.data[i].filter((v) => v != null).length === 1, size: 9, fill: stroke, stroke});
    chart = new uPlot({
      width: box.clientWidth, height: HEIGHT,
      scales: {x: {time: false}},
      axes: [
        {...axis, label: "step", labelSize: 18, size: 34, values: (u, at) => at.map(step)},
        {...axis, label: words(), labelSize: 18, size: 64, values: (u, at) => at.map(short)},
      ],
      series: [
        {label: "step", value: (u, v) => step(v)},
        ...jobs.map((job, i) => ({label: named(job), stroke: colour(`s${i}`), width: 1.6, spanGaps: true, points: lone(colour(`s${i}`)), value: (u, v) => short(v)})),
      ],
      hooks: {setSelect: [(u) => { u.zoomed = u.select.width > 0; }]},
    }, [found.steps, ...found.values], box);
    chart.over.addEventListener("dblclick", () => { chart.zoomed = false; });
    drawn = found.metric;
  };
  const describe = () => {
    const each = jobs.map((job, i) => {
      const list = found.values[i].filter((v) => v != null);
      return `${job.name} ${short(list[0])} to ${short(list[list.length - 1])}`;
    });
    box.setAttribute("aria-label", `${words()} by step: ${each.join("; ")}`);
    note.textContent = "By step. Each colour is one job, as in the table of results." +
      (found.width > 1 ? ` Each point is the mean of ${found.width} steps.` : "");
    const every = Math.max(1, Math.ceil(found.steps.length / ROWS));
    const cell = (kind, text, scope = "") => {
      const made = document.createElement(kind);
      made.textContent = text;
      if (scope) made.scope = scope;
      return made;
    };
    const row = (...cells) => { const made = document.createElement("tr"); made.append(...cells); return made; };
    const head = document.createElement("thead"), body = document.createElement("tbody");
    head.append(row(cell("th", "Step", "col"), ...jobs.map((job) => cell("th", named(job), "col"))));
    found.steps.forEach((at, i) => {
      if (i % every && i < found.steps.length - 1) return;
      body.append(row(cell("th", step(at), "row"), ...found.values.map((list) => cell("td", short(list[i])))));
    });
    values.replaceChildren(head, body);
  };
  // However many answers arrive and choices are made: one drawing a frame.
  const redraw = () => {
    if (frame) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      draws++;
      if (!chart || drawn !== found.metric) make(); else chart.setData([found.steps, ...found.values], !chart.zoomed);
      describe();
    });
  };
  const show = (answer) => { found = answer; redraw(); };

  const load = async () => {
    const mine = ++asked;
    try {
      const answer = await fetch(`/compare/curves.json?${root.dataset.query}&metric=${chosen().value}`, {credentials: "same-origin"});
      if (!answer.ok) throw new Error(`The curves could not be loaded (HTTP ${answer.status}).`);
      const data = await answer.json();
      if (mine === asked) show(data);
    } catch (error) {
      if (mine === asked) window.trainhop.say(error.message, "bad");
    }
  };
  metrics.hidden = false;
  metrics.addEventListener("change", load);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawn = ""; if (found) redraw(); });
  new ResizeObserver(() => {
    if (chart && Math.abs(chart.width - box.clientWidth) > 1) chart.setSize({width: box.clientWidth, height: HEIGHT});
  }).observe(box);
  if (root.dataset.live === "yes") setInterval(() => { if (!document.hidden) load(); }, AGAIN_MS);
  window.trainhop.compare = {show, get chart() { return chart; }, get found() { return found; }, get draws() { return draws; }};
  load();
})();
