// The loss chart of a job: one line over all sessions, a colour per session, a mark at each hand-off.
"use strict";
(() => {
  const root = document.getElementById("job"), box = document.getElementById("curve");
  const tools = document.getElementById("curve-tools");
  const job = root.dataset.job;
  const note = document.getElementById("curve-note"), second = tools.querySelector("[name=second]");
  const SMOOTH = 0.8, REPORT_S = 15, LISTEN_AGAIN_MS = 5000, COLOURS = 6, NEAR_PX = 24, NEAR_ROWS = 200;
  const state = {series: {}, sessions: [], began: 0, total: 0, cursor: "0.0", x: "step"};
  let chart = null, frame = 0, labels = [];

  const on = (name) => tools.querySelector(`[name=${name}]`).checked;
  const secondName = () => second.selectedOptions[0].text;

  // Colours come from the style sheet, for the current colour scheme.
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  const faint = (name) => colour(name).replace("rgb(", "rgba(").replace(")", ", .33)");
  const sessionColour = (session) => `s${(session.number - 1) % COLOURS}`;

  // rows: a sorted list of [step, value, seconds since submit, fence]. A repeated step replaces the earlier row.
  const merge = (name, columns) => {
    const [steps, values, times, fences] = columns;
    const rows = state.series[name] ??= [];
    steps.forEach((step, i) => {
      const row = [step, values[i], times[i], fences[i]];
      let at = rows.length;
      while (at > 0 && rows[at - 1][0] > step) at--;
      if (at > 0 && rows[at - 1][0] === step) rows[at - 1] = row; else rows.splice(at, 0, row);
    });
  };

  // A report has several steps. By time they are spread between this report and the one before.
  const spread = (rows) => {
    for (let i = 0; i < rows.length;) {
      let end = i + 1;
      while (end < rows.length && rows[end][2] === rows[i][2] && rows[end][3] === rows[i][3]) end++;
      const until = rows[i][2], before = rows[i - 1];
      const began = (sessionOf(rows[i][3])?.began ?? state.began) - state.began;
      const from = before && before[3] === rows[i][3] ? before[2] : Math.max(began, until - REPORT_S);
      for (let k = i; k < end; k++) rows[k] = [rows[k][0], rows[k][1], from + (until - from) * (k - i + 1) / (end - i), rows[k][3]];
      i = end;
    }
    return rows;
  };
  const sessionOf = (fence) => state.sessions.find((s) => s.fence === fence);
  const place = ([step, , time, fence]) => {
    if (state.x === "step") return step;
    if (state.x === "clock") return state.began + time;
    const session = sessionOf(fence);
    return session?.began ? (session.spent + state.began + time - session.began) / 3600 : time / 3600;
  };
  // A point is lost when a later session ran an earlier step.
  const split = (rows) => {
    const kept = [], lost = [];
    let newest = 0;
    for (const row of rows) {
      if (row[3] < newest) lost.push(row); else { newest = row[3]; kept.push(row); }
    }
    return [kept, lost];
  };

  const marks = () => {
    const begun = state.sessions.filter((s) => s.began);
    return begun.slice(1).map((session, i) => {
      const before = begun[i];
      const x = state.x === "step" ? session.first + 0.5 : state.x === "clock" ? session.began : session.spent / 3600;
      return {x, from: before.number, to: session.number, step: session.first, why: before.outcome || ""};
    });
  };

  // Curves with different x values, as one table. The last of two values at the same x counts.
  const join = (curves) => {
    if (curves.length === 1) {
      const [{xs, columns}] = curves, found = new Map(columns);
      return [xs, ...[1, 2, 3, 4, 5].map((column) => found.get(column) ?? new Array(xs.length).fill(null))];
    }
    const out = [[], [], [], [], [], []], at = curves.map(() => 0);
    for (let row = 0; ; row++) {
      let x = Infinity;
      for (let i = 0; i < curves.length; i++) if (curves[i].xs[at[i]] < x) x = curves[i].xs[at[i]];
      if (x === Infinity) return out;
      out[0].push(x);
      for (let column = 1; column < out.length; column++) out[column].push(null);
      for (let i = 0; i < curves.length; i++) {
        for (; curves[i].xs[at[i]] === x; at[i]++) for (const [column, values] of curves[i].columns) out[column][row] = values[at[i]];
      }
    }
  };
  const inOrder = (rows) => {
    const xs = rows.map(place);
    if (xs.every((x, i) => i === 0 || xs[i - 1] <= x)) return [rows, xs];
    const sorted = rows.map((row, i) => [xs[i], row]).sort((a, b) => a[0] - b[0]);
    return [sorted.map((pair) => pair[1]), sorted.map((pair) => pair[0])];
  };
  const smooth = (rows) => {
    let mean = 0, weight = 0;
    return rows.map((row) => {
      mean = SMOOTH * mean + (1 - SMOOTH) * row[1];
      weight = SMOOTH * weight + (1 - SMOOTH);
      return mean / weight;
    });
  };
  const table = () => {
    const timed = (rows) => state.x === "step" ? rows : spread(rows);
    const curve = (rows, column, more = () => []) => {
      const [ordered, xs] = inOrder(rows);
      return {xs, columns: [[column, ordered.map((row) => row[1])], ...more(ordered)]};
    };
    const [kept, lost] = split(state.series.loss || []);
    const curves = [curve(timed(kept), 1, (rows) => on("ema") ? [[2, smooth(rows)]] : [])];
    if (state.x === "step") curves.push(curve(lost, 3));
    for (const [name, column] of [[on("eval_loss") && "eval_loss", 4], [second.value, 5]]) {
      if (name) curves.push(curve(timed(split(state.series[name] || [])[0]), column));
    }
    return join(curves.filter((c) => c.xs.length));
  };

  // One stroke for all sessions: a gradient with hard edges where the session changes
  const stroke = (thin) => (u) => {
    const ends = [u.scales.x.min, u.scales.x.max], pick = thin ? faint : colour;
    const cuts = marks(), begun = state.sessions.filter((s) => s.began);
    if (!begun.length || !(ends[1] > ends[0])) return pick("s0");
    const [left, right] = [u.valToPos(ends[0], "x", true), u.valToPos(ends[1], "x", true)];
    if (!Number.isFinite(left) || !(right > left)) return pick("s0");
    const gradient = u.ctx.createLinearGradient(left, 0, right, 0);
    let from = 0;
    begun.forEach((session, i) => {
      const until = i < cuts.length ? Math.min(1, Math.max(from, (cuts[i].x - ends[0]) / (ends[1] - ends[0]))) : 1;
      gradient.addColorStop(from, pick(sessionColour(session)));
      gradient.addColorStop(until, pick(sessionColour(session)));
      from = until;
    });
    return gradient;
  };

  // A label is in the first row where no other is. Those of lost machines are placed first, so that none of them is left out.
  const placeLabels = (ctx, spots, {left, top, width, height}, ratio) => {
    const rows = [], high = 14 * ratio, most = Math.max(1, Math.floor(height / high) - 1);
    const room = (row, from, to) => (rows[row] ??= []).every(([a, b]) => to < a || from > b);
    const found = [];
    for (const mark of [...spots].sort((a, b) => (b.why === "lost") - (a.why === "lost"))) {
      const why = {handed_off: "handed off", lost: "machine lost", paused: "paused"}[mark.why] || mark.why;
      const brief = `${mark.from} → ${mark.to}`;
      for (const text of [`${brief}  ${why}`, brief]) {
        const wide = ctx.measureText(text).width;
        const x = mark.at + 5 * ratio + wide < left + width ? mark.at + 5 * ratio : Math.max(left, mark.at - 5 * ratio - wide);
        let row = 0;
        while (row < most && !room(row, x - 4 * ratio, x + wide + 4 * ratio)) row++;
        if (row === most) continue;
        rows[row].push([x, x + wide]);
        found.push({text, x, y: top + 4 * ratio + row * high, width: wide, height: high});
        break;
      }
    }
    return found;
  };
  const drawMarks = (u) => {
    const {ctx, bbox} = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.strokeStyle = colour("muted");
    ctx.textAlign = "left";
    ctx.textBaseline = "top";
    const ratio = devicePixelRatio || 1;
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    const spots = marks().map((mark) => ({...mark, at: u.valToPos(mark.x, "x", true)}));
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    for (const mark of spots) {
      ctx.beginPath();
      ctx.moveTo(mark.at, bbox.top);
      ctx.lineTo(mark.at, bbox.top + bbox.height);
      ctx.stroke();
    }
    labels = placeLabels(ctx, spots, bbox, ratio);
    for (const {text, x, y, width, height} of labels) {
      ctx.fillStyle = colour("card");
      ctx.fillRect(x - 2 * ratio, y - ratio, width + 4 * ratio, height);
      ctx.fillStyle = colour("muted");
      ctx.fillText(text, x, y);
    }
    ctx.restore();
  };

  // The values at the cursor, or the nearest ones
  const near = (u, column) => {
    const [xs] = u.data, values = u.data[column], {idx, left} = u.cursor;
    for (let away = 0; away < NEAR_ROWS; away++) {
      for (const i of [idx - away, idx + away]) {
        if (values[i] != null && Math.abs(u.valToPos(xs[i], "x") - left) < NEAR_PX) return i;
      }
    }
    return -1;
  };
  const tell = (u) => {
    const found = [];
    let x = null;
    if (u.cursor.idx != null) {
      for (let column = 1; column < u.series.length; column++) {
        const i = u.series[column].show ? near(u, column) : -1;
        if (i < 0) continue;
        x ??= u.data[0][i];
        found.push(`${u.series[column].label} ${short(u.data[column][i])}`);
      }
    }
    u.tip.hidden = x === null;
    if (x === null) return;
    const session = state.sessions.filter((s) => s.began)[marks().filter((mark) => mark.x <= x).length];
    const where = state.x === "clock" ? new Date(x * 1000).toLocaleString("en-GB") : state.x === "gpu" ? `${short(x)} h` : `step ${x}`;
    u.tip.textContent = [where, ...found, session ? `session ${session.number}, ${session.where}` : ""].join("\n").trim();
    const right = u.cursor.left > u.over.clientWidth / 2;
    u.tip.style.left = right ? "auto" : `${u.cursor.left + 14}px`;
    u.tip.style.right = right ? `${u.over.clientWidth - u.cursor.left + 14}px` : "auto";
  };

  const short = (v) => v == null ? "–" : Math.abs(v) < 1e-3 && v !== 0 ? v.toExponential(1) : Number(v.toPrecision(4)).toString();
  const NOTHING = {
    queued: "No loss yet. The job waits for a machine.",
    running: "No loss yet. It comes with the first report of a step.",
    paused: "No loss yet. The job was paused before its first step.",
    failed: "No loss was reported. The job failed before its first step.",
    cancelled: "No loss was reported. The job was cancelled before its first step.",
  };
  const sayEmpty = () => {
    const words = document.createElement("p");
    words.className = "empty";
    words.textContent = NOTHING[document.getElementById("facts").dataset.state] || "No loss was reported.";
    box.replaceChildren(words);
  };
  const make = () => {
    chart?.destroy();
    chart = null;
    box.replaceChildren();
    describe();
    tools.hidden = !state.series.loss?.length;
    if (tools.hidden) return sayEmpty();
    const axis = {stroke: colour("muted"), labelSize: 18, labelGap: 0, labelFont: "12px system-ui, sans-serif", grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1}, font: "12px system-ui, sans-serif"};
    const clock = state.x === "clock";
    // A line of one point would be invisible.
    const lone = {show: (u, i) => u.data[i].filter((v) => v != null).length === 1, size: 9, fill: colour("s0"), stroke: colour("s0")};
    chart = new uPlot({
      width: box.clientWidth, height: box.clientHeight,
      scales: {
        x: {time: clock, range: (u, low, high) => {
          if (state.x === "step" && !(u.zoomed)) return [0, Math.max(high ?? 1, 1) * 1.02];
          return low == null ? [0, 1] : low === high ? [low - 0.5, high + 0.5] : [low, high];
        }},
        y: {distr: on("log") ? 3 : 1}, second: {},
      },
      axes: [
        {...axis, size: 34, label: {step: "step", gpu: "machine time, hours", clock: "time"}[state.x], values: clock ? undefined : (u, found) => found.map((v) => state.x === "gpu" ? short(v) : Number.isInteger(v) ? v.toLocaleString("en") : "")},
        {...axis, label: "loss", size: 50, values: (u, found) => found.map((v) => v == null ? "" : short(v))},
        {...axis, label: secondName(), scale: "second", side: 1, size: 56, show: second.value !== "", grid: {show: false}, values: (u, found) => found.map(short)},
      ],
      series: [
        {},
        {label: "loss", stroke: stroke(on("ema")), width: on("ema") ? 1 : 1.6, points: lone},
        {label: "smoothed", stroke: stroke(false), width: 2.2, show: on("ema"), points: {show: false}},
        {label: "repeated", stroke: colour("muted"), dash: [3, 4], width: 1.2, points: {show: false}},
        {label: "eval", stroke: colour("ink"), width: 0, show: on("eval_loss"), points: {show: true, size: 9, fill: colour("card"), width: 2, stroke: colour("ink")}, spanGaps: true},
        {label: secondName(), scale: "second", stroke: colour("muted"), width: 1.2, show: second.value !== "", points: {show: false}, spanGaps: true},
      ],
      cursor: {focus: {prox: 24}},
      hooks: {
        init: [(u) => { u.tip = document.createElement("div"); u.tip.className = "tip"; u.tip.hidden = true; u.over.append(u.tip); }],
        draw: [drawMarks], setCursor: [tell], setSelect: [(u) => { u.zoomed = u.select.width > 0; }],
      },
      legend: {show: false},
    }, table(), box);
  };
  const describe = () => {
    const rows = state.series.loss || [];
    const cuts = marks().map((m) => m.step);
    box.setAttribute("aria-label", rows.length
      ? `Training loss over ${rows[rows.length - 1][0]} steps: from ${short(rows[0][1])} to ${short(rows[rows.length - 1][1])}` +
        (cuts.length ? `; hand-offs after step ${cuts.join(", ")}` : "; no hand-offs yet")
      : "Training loss: no data yet");
  };
  const redraw = () => {
    if (frame) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      if (!chart) return make();
      const began = performance.now();
      chart.setData(table(), !chart.zoomed);
      describe();
      window.trainhop.curve.took = performance.now() - began;
    });
  };

  // Steps and times arrive as differences from the row before.
  const rowsOf = ([steps, values, times, fences]) => {
    let step = 0, time = 0;
    return steps.map((more, i) => [step += more, values[i], time = Math.round((time + times[i]) * 10) / 10, fences[i]]);
  };
  const read = async (names) => {
    const answer = await fetch(`/jobs/${job}/curve.json?names=${names}`, {credentials: "same-origin"});
    if (!answer.ok) throw new Error(`The loss data could not be loaded (HTTP ${answer.status}).`);
    return answer.json();
  };
  const keep = (found) => { for (const [name, columns] of Object.entries(found.series)) state.series[name] = rowsOf(columns); };
  const load = async () => {
    const found = await read(["loss", "eval_loss", second.value].filter(Boolean));
    Object.assign(state, {series: {}, sessions: found.sessions, began: found.began, total: found.total, cursor: found.cursor});
    keep(found);
    make();
  };

  root.addEventListener("points", (event) => {
    const found = JSON.parse(event.detail.data);
    state.sessions = found.sessions;
    for (const [name, columns] of Object.entries(found.series)) if (name in state.series || name === "loss") merge(name, columns);
    state.cursor = found.cursor;
    redraw();
  });
  root.addEventListener("reload", load);
  tools.addEventListener("change", async () => {
    state.x = tools.querySelector("[name=x]:checked").value;
    const name = second.value;
    try {
      if (name && !state.series[name]) keep(await read(name));
    } catch (error) {
      window.trainhop.say(error.message, "bad");
    }
    note.textContent = name && !state.series[name]?.length ? `No values yet: ${secondName()}.` : "";
    make();
  });
  box.addEventListener("dblclick", () => { if (chart) chart.zoomed = false; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart && make());
  new ResizeObserver(() => {
    if (chart && Math.abs(chart.width - box.clientWidth) > 1) chart.setSize({width: box.clientWidth, height: box.clientHeight});
  }).observe(box);

  window.trainhop.curve = {state, marks, merge, redraw, took: 0, get chart() { return chart; }, get labels() { return labels; }};
  const begin = async () => {
    try {
      await load();
    } catch (error) {
      window.trainhop.say(error.message, "bad");
      setTimeout(begin, 3000);
      return;
    }
    listen();
    setInterval(listen, LISTEN_AGAIN_MS);
  };
  // htmx reconnects a stream that breaks, but not one that never connected.
  const stream = {open: false, trying: false, over: false};
  const listen = async () => {
    if (stream.open || stream.trying || stream.over || document.hidden) return;
    stream.trying = true;
    try {
      // The position to resume from is known only now.
      const address = `/jobs/${job}/live?from=${state.cursor}`;
      root.setAttribute("hx-sse:connect", address);
      await htmx.ajax("GET", address, {source: root, target: root, swap: "none"});
    } finally {
      stream.trying = false;
    }
  };
  root.addEventListener("htmx:sse:after:connection", () => { stream.open = true; });
  root.addEventListener("htmx:sse:close", () => { stream.open = false; });
  for (const end of ["gone", "login"]) root.addEventListener(end, () => { stream.over = true; });
  begin();
})();
