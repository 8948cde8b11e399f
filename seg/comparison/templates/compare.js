"use strict";
// The page of seg.compare: a table that sorts, filters and chooses runs, and plots of what is chosen.
// Text from runs goes into the page by textContent, into plots by plain(); nothing is fetched.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const { asked, keys, groups, runs, classes, sets } = data;
const $ = (id) => document.getElementById(id);
const has = (value) => value !== null && value !== undefined;
const PALETTE = 8; // colours of groups; the others share a grey
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// ---- text and colours

/** Text as Plotly shows it literally: its own markup is disarmed. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "\u2026" : text);

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const colour = (group) => css("--c" + (has(group) ? Math.min(group, PALETTE) : PALETTE));

const fixed = (value, digits = 4) => (has(value) ? value.toFixed(digits) : "");

function option(select, value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  select.append(made);
}

// ---- the table of runs: sort, filter, choose

const table = $("table");
const body = table.tBodies[0];
const rows = [...body.rows];
const shown = new Set(runs.keys());

const text = (row, column) => row.cells[column].textContent.trim();

function sort(header) {
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const values = new Map(rows.map((row) => [row, text(row, column)]));
  const numeric = [...values.values()].every((v) => v === "" || Number.isFinite(Number(v)));
  const order = [...rows].sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // nothing stays last
    const way = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
    return down ? -way : way;
  });
  body.append(...order);
}

function choose(which) {
  const best = new Set(groups.map((_, g) => typical(g)));
  for (const row of rows) {
    if (row.hidden) continue;
    const run = Number(row.dataset.run);
    row.querySelector("input").checked = which === "all" || (which === "typical" && best.has(run));
  }
  update();
}

/** The run of a group whose score is nearest to the group's mean. */
function typical(group) {
  const own = [...runs.keys()].filter((i) => runs[i].group === group);
  const away = (i) => Math.abs(runs[i].score - groups[group].mean);
  return own.reduce((a, b) => (away(b) < away(a) ? b : a));
}

/** Takes over what is ticked and passes the filter. */
function update() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown.clear();
  for (const row of rows) {
    const all = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => all.includes(word));
    if (!row.hidden && row.querySelector("input").checked) shown.add(Number(row.dataset.run));
  }
  $("count").textContent = `${shown.size} of ${runs.length} runs shown`;
  redraw();
}

table.tHead.addEventListener("click", (event) => {
  const button = event.target.closest("button.sort");
  if (button) sort(button.closest("th"));
});
body.addEventListener("change", update);
$("filter").addEventListener("input", update);
for (const button of document.querySelectorAll("[data-choose]"))
  button.addEventListener("click", () => choose(button.dataset.choose));

// ---- plots: drawn when they come near, and again when what they show changes

const plots = new Map(); // element -> {draw, near, stale}

function plot(id, draw, ...controls) {
  const element = $(id);
  if (!element) return;
  plots.set(element, { draw, near: false, stale: true });
  watcher.observe(element);
  for (const control of controls)
    control.addEventListener("change", () => {
      outdate(element);
      drawStale();
    });
}

function outdate(element) {
  plots.get(element).stale = true;
  element.setAttribute("aria-busy", "true"); // until it is drawn again
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) plots.get(entry.target).near = entry.isIntersecting;
  drawStale();
}, { rootMargin: "200px" });

let waiting = false;

function redraw() {
  for (const element of plots.keys()) outdate(element);
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawStale();
  });
}

function drawStale(all = false) {
  for (const [element, one] of plots) {
    if (!one.stale || !(one.near || all)) continue;
    one.stale = false;
    const [traces, layout] = one.draw(element);
    Plotly.react(element, traces, merged(layout), {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg" },
    });
    element.setAttribute("aria-busy", "false");
  }
}

const axis = () => ({ gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), automargin: true });

/** A layout in the page's colours and type. */
function merged(layout) {
  const x = { ...axis(), ...layout.xaxis }, y = { ...axis(), ...layout.yaxis };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { color: css("--text"), size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 56, r: 12, t: 12, b: 48 }, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
    hoverlabel: { bgcolor: css("--back"), bordercolor: css("--line"), font: { color: css("--text") }, align: "left" },
    ...layout, xaxis: x, yaxis: y,
  };
}

dark.addEventListener("change", redraw);
window.addEventListener("beforeprint", () => drawStale(true));

/** A note in place of a plot that would be empty. */
const nothing = (why) => [[], {
  xaxis: { visible: false }, yaxis: { visible: false },
  annotations: [{ text: why, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
}];

const shownRuns = () => [...shown].sort((a, b) => a - b);
const shownGroups = () => [...new Set(shownRuns().map((i) => runs[i].group).filter(has))].sort((a, b) => a - b);
const groupName = (group) => (has(group) ? groups[group].label : "not ranked");

/** Whether numbers span so much that equal factors should look equal. */
const wide = (values) => values.every((v) => v > 0) && Math.max(...values) > 20 * Math.min(...values);

// ---- learning curves

function curveNames() {
  const names = new Set(runs.flatMap((run) => Object.keys(run.curves.values)));
  const first = [`val/${asked.key.split("/").slice(asked.split === "test" ? 1 : 2).join("/")}`, "val/dice", "train/loss", "val/loss"];
  return [...first.filter((name) => names.delete(name)), ...[...names].sort()];
}

function places(run, by) {
  const { step, epoch, steps } = run.curves;
  if (by === "step") return step.map((s) => (has(s) ? s + 1 : null));
  if (by === "epoch") return epoch.map((e) => (has(e) ? e + 1 : null));
  const each = has(run.minutes) && steps ? run.minutes / steps : null;
  return step.map((s) => (has(s) && each !== null ? (s + 1) * each : null));
}

function drawCurves() {
  const name = $("curve-metric").value, by = $("curve-x").value;
  const own = shownRuns().filter((i) => runs[i].curves.values[name]);
  if (!own.length) return nothing("no shown run has measured this");
  const named = new Set();
  const traces = own.map((i) => {
    const run = runs[i], label = groupName(run.group);
    const key = has(run.group) && run.group >= PALETTE ? "others" : label;
    const first = !named.has(key);
    named.add(key);
    const points = places(run, by).map((x, row) => [x, run.curves.values[name][row]]).filter(([x, y]) => has(x) && has(y));
    return {
      x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: points.length > 1 ? "lines" : "markers",
      line: { color: colour(run.group), width: own.length > 40 ? 1 : 1.7, dash: has(run.group) ? "solid" : "dot" },
      marker: { color: colour(run.group) }, opacity: own.length > 40 ? 0.6 : 0.9, legendgroup: key, showlegend: first,
      name: plain(cut(key, 40)), hovertemplate: `${plain(cut(run.label, 60))}<br>%{y:.4g} at %{x:.4g}<extra></extra>`,
    };
  });
  return [traces, {
    xaxis: { title: { text: by }, rangemode: "tozero" }, yaxis: { title: { text: plain(name) } },
    showlegend: true,
  }];
}

// ---- each class

function drawClasses() {
  const own = shownGroups().slice(0, 12);
  const names = [...new Set(own.flatMap((g) => [...Object.keys(groups[g].intervals), ...memberNames(g)]))]
    .sort((a, b) => (a !== "") - (b !== ""));
  if (!names.length) return nothing("no shown group has scores by class");
  const offset = (k) => (own.length === 1 ? 0 : (k / (own.length - 1) - 0.5) * 0.6);
  const traces = own.flatMap((g, k) => {
    const group = groups[g], with_them = names.flatMap((n, i) => (group.intervals[n] ? [[i, ...group.intervals[n]]] : []));
    const members = shownRuns().filter((r) => runs[r].group === g);
    const dots = members.flatMap((r) => names.flatMap((n, i) => (has(runs[r].classes[n]) ? [[i, runs[r].classes[n], runs[r].label]] : [])));
    return [{
      x: with_them.map((p) => p[0] + offset(k)), y: with_them.map((p) => p[1]), mode: "markers", name: plain(cut(group.label, 40)),
      marker: { color: colour(g), size: 9 }, legendgroup: String(g), showlegend: true,
      error_y: { type: "data", symmetric: false, color: colour(g), thickness: 1.6, width: 4,
        array: with_them.map((p) => p[3] - p[1]), arrayminus: with_them.map((p) => p[1] - p[2]) },
      hovertemplate: with_them.map((p) => `${plain(cut(group.label, 60))}<br>${fixed(p[1])}, ${fixed(p[2])} to ${fixed(p[3])}<extra></extra>`),
    }, {
      x: dots.map((p) => p[0] + offset(k)), y: dots.map((p) => p[1]), mode: "markers", legendgroup: String(g),
      marker: { color: colour(g), size: 5, opacity: 0.45 }, name: plain(cut(group.label, 40)), showlegend: !with_them.length,
      hovertemplate: dots.map((p) => `${plain(cut(p[2], 60))}<br>${fixed(p[1])}<extra></extra>`),
    }];
  });
  return [traces, {
    xaxis: { tickvals: names.map((_, i) => i), ticktext: names.map((n) => plain(cut(n || "mean", 20))), range: [-0.5, names.length - 0.5], showgrid: false },
    yaxis: { title: { text: plain(asked.name.split(" of ")[0]) } }, showlegend: true,
  }];
}

const memberNames = (g) => runs.filter((run) => run.group === g).flatMap((run) => Object.keys(run.classes));

// ---- options and score: parallel coordinates

/** An axis: where values lie in 0..1, and its marks. */
function scaled(values) {
  const known = values.filter(has), numeric = known.every((v) => typeof v === "number");
  if (!numeric) {
    const kinds = [...new Set(known.map(String))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    const at = (v) => (kinds.length > 1 ? kinds.indexOf(String(v)) / (kinds.length - 1) : 0.5);
    return { at, marks: kinds.length > 12 ? [kinds[0], kinds[kinds.length - 1]] : kinds };
  }
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const turn = wide(known) ? Math.log : (v) => v;
  const at = (v) => (high > low ? (turn(v) - turn(low)) / (turn(high) - turn(low)) : 0.5);
  const kinds = [...new Set(known)].sort((a, b) => a - b);
  return { at, marks: kinds.length <= 5 ? kinds : [low, high] };
}

const brief = (v) => (typeof v !== "number" ? cut(v, 18) : Math.abs(v) >= 1e5 ? `${+(v / 1e6).toPrecision(3)} M` : String(+v.toPrecision(4)));

function drawOptions() {
  const own = shownRuns().filter((i) => has(runs[i].score));
  if (own.length < 2) return nothing("two or more shown runs are needed");
  const axes = [
    ...keys.map((key, k) => [key, (run) => run.options[k]]), ["parameters", (run) => run.parameters],
    ["minutes", (run) => (has(run.minutes) ? +run.minutes.toPrecision(3) : null)], [asked.name, (run) => has(run.score) ? +run.score.toFixed(4) : null],
  ].filter(([, of]) => new Set(own.map((i) => of(runs[i]))).size > 1);
  if (!axes.length) return nothing("the shown runs differ in nothing");
  const lines = axes.map(([name, of]) => ({ name, of, ...scaled(own.map((i) => of(runs[i]))) }));
  const scores = own.map((i) => runs[i].score), [low, high] = [Math.min(...scores), Math.max(...scores)];
  const traces = own.map((i) => {
    const good = high > low ? (runs[i].score - low) / (high - low) : 1, rank = asked.smaller ? 1 - good : good;
    const known = lines.map((axis, k) => [k, axis.of(runs[i]), axis]).filter(([, v]) => has(v));
    return {
      x: known.map((p) => p[0]), y: known.map(([, v, axis]) => axis.at(v)), mode: "lines+markers", showlegend: false,
      line: { color: shade(rank), width: 1 + 2 * rank }, marker: { size: 4, color: shade(rank) },
      hovertemplate: known.map(([, v, axis]) => `${plain(cut(runs[i].label, 60))}<br>${plain(axis.name)} ${plain(brief(v))}, ${plain(asked.name)} ${fixed(runs[i].score)}<extra></extra>`),
    };
  });
  const notes = lines.flatMap((axis, k) => axis.marks.map((mark) => ({
    x: k, y: axis.at(mark), text: plain(brief(mark)), showarrow: false, xanchor: k === lines.length - 1 ? "right" : "left",
    xshift: k === lines.length - 1 ? -6 : 6, bgcolor: css("--back"), opacity: 0.9, font: { size: 11 },
  })));
  return [traces.reverse(), {
    annotations: notes, yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true }, margin: { l: 24, r: 24, t: 12, b: 56 },
    xaxis: { tickvals: lines.map((_, k) => k), ticktext: lines.map((axis) => plain(cut(axis.name, 22))), range: [-0.15, lines.length - 0.85], fixedrange: true, gridcolor: css("--quiet") },
  }];
}

/** From the line colour (0) to the first of the palette (1). */
function shade(share) {
  const parts = (name) => css(name).match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
  const [from, to] = [parts("--c8"), parts("--c0")];
  const mixed = from.map((value, i) => Math.round(value + (to[i] - value) * share));
  return `rgba(${mixed.join(",")},${0.25 + 0.75 * share})`;
}

// ---- score against cost

function drawCost() {
  const by = $("cost-x").value, factor = by === "parameters" ? 1e-6 : 1;
  const own = shownGroups().filter((g) => has(groups[g][by]));
  if (!own.length) return nothing(`the ${by} of the shown runs aren't known`);
  const x = (g) => groups[g][by] * factor;
  const traces = own.map((g) => ({
    x: [x(g)], y: [groups[g].mean], mode: "markers", name: plain(cut(groups[g].label, 40)), marker: { color: colour(g), size: 11 },
    error_y: { type: "data", array: [groups[g].sd ?? 0], visible: has(groups[g].sd), color: colour(g), thickness: 1.4 }, showlegend: own.length <= 12,
    hovertemplate: `${plain(cut(groups[g].label, 60))}<br>${fixed(groups[g].mean)} at %{x:.3g}, ${groups[g].runs} runs<extra></extra>`,
  }));
  const front = [];
  const better = (a, b) => (asked.smaller ? a < b : a > b);
  for (const g of [...own].sort((a, b) => x(a) - x(b) || (better(groups[a].mean, groups[b].mean) ? -1 : 1)))
    if (!front.length || better(groups[g].mean, groups[front[front.length - 1]].mean)) front.push(g);
  traces.unshift({
    x: front.map(x), y: front.map((g) => groups[g].mean), mode: "lines", line: { color: css("--quiet"), width: 1.2, shape: "hv", dash: "dot" },
    name: "Pareto front", hoverinfo: "skip", showlegend: true,
  });
  return [traces, {
    xaxis: { title: { text: by === "parameters" ? "parameters, millions" : "minutes of training" }, type: wide(own.map(x)) ? "log" : "linear" },
    yaxis: { title: { text: plain(asked.name) } }, showlegend: true,
  }];
}

// ---- two runs

function pair() {
  return [Number($("run-a").value), Number($("run-b").value)];
}

function drawScatter() {
  const [a, b] = pair().map((i) => runs[i]), column = Number($("scatter-class").value);
  $("scatter-said").textContent = "";
  if (!has(a.set) || !has(b.set)) return nothing("one of them has no counts of images");
  const of_b = new Map(sets[b.set].map((name, i) => [name, b.dice[i][column]]));
  const points = sets[a.set].map((name, i) => [a.dice[i][column], of_b.get(name), name]).filter(([x, y]) => has(x) && has(y));
  if (!points.length) return nothing("they have no image in common");
  const ahead = points.filter(([x, y]) => x > y).length, behind = points.filter(([x, y]) => x < y).length;
  const left_out = data.step > 1 ? ` (one of ${data.step} images is drawn)` : "";
  $("scatter-said").textContent = `A is better on ${ahead}, B on ${behind} of ${points.length} images${left_out}`;
  const all = points.flatMap(([x, y]) => [x, y]), pad = 0.03 * (Math.max(...all) - Math.min(...all) || 1);
  const range = [Math.min(...all) - pad, Math.max(...all) + pad];
  return [[
    { x: range, y: range, mode: "lines", line: { color: css("--quiet"), width: 1, dash: "dot" }, hoverinfo: "skip" },
    { x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: "markers", marker: { color: css("--c0"), size: 7, opacity: 0.75 },
      hovertemplate: points.map(([x, y, name]) => `${plain(cut(name, 60))}<br>A ${fixed(x)}, B ${fixed(y)}<extra></extra>`) },
  ], {
    showlegend: false, xaxis: { title: { text: `A: ${plain(cut(a.label, 44))}` }, range },
    yaxis: { title: { text: `B: ${plain(cut(b.label, 44))}` }, range, scaleanchor: "x" },
  }];
}

function writeDiff() {
  const [a, b] = pair(), every = $("every-key").checked, rows = [];
  for (const [name, values] of [...Object.entries(data.config), ...Object.entries(data.facts)]) {
    const [x, y] = Array.isArray(values) ? [values[a], values[b]] : [values, values];
    if (x === y && (!every || !has(x))) continue;
    const row = document.createElement("tr");
    row.classList.toggle("differs", x !== y);
    const header = document.createElement("th");
    header.scope = "row";
    header.textContent = name;
    row.append(header, ...[x, y].map((value) => {
      const cell = document.createElement("td");
      cell.textContent = value ?? "\u2013";
      return cell;
    }));
    rows.push(row);
  }
  $("diff").tBodies[0].replaceChildren(...rows);
}

// ---- begin

if ($("curve-metric")) for (const name of curveNames()) option($("curve-metric"), name, name);
for (const [id, start] of [["run-a", groups.length > 1 ? typical(0) : 0], ["run-b", groups.length > 1 ? typical(1) : Math.min(1, runs.length - 1)]]) {
  runs.forEach((run, i) => option($(id), i, `${run.label} (${groupName(run.group)}${run.seed ? `, seed ${run.seed}` : ""})`));
  $(id).value = start;
  $(id).addEventListener("change", writeDiff);
}
if ($("scatter-class")) {
  option($("scatter-class"), 0, "the mean over classes");
  if (runs.some((run) => run.dice && run.dice[0].length > 1)) classes.forEach((name, i) => option($("scatter-class"), i + 1, name));
}
$("every-key").addEventListener("change", writeDiff);
writeDiff();
plot("plot-curves", drawCurves, $("curve-metric"), $("curve-x"));
plot("plot-classes", drawClasses);
plot("plot-options", drawOptions);
plot("plot-cost", drawCost, $("cost-x"));
plot("plot-scatter", drawScatter, $("scatter-class"), $("run-a"), $("run-b"));
update();
})();
