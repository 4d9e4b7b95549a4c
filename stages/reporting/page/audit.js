// The page of audits: calibration, error against N, signs, the mask against ρ, and the variance of the gradient.
import { lineChart, SERIES_COLORS } from "./charts.js";
import { el, figure } from "./dom.js";
import { inScope } from "./filters.js";
import { listen, state } from "./state.js";

export class AuditView {
  constructor(model) {
    this.model = model;
    this.element = el("div", { class: "audit-view" });
    listen((names) => { if (state.view === "audit" && ["view", "iterations", "runs"].some((name) => names.has(name))) this.draw(); });
  }

  draw() {
    const shown = this.model.audits.filter((one) => inScope(one));
    this.element.replaceChildren(...(shown.length ? shown.map((one) => auditSection(one)) : [el("p", { class: "empty" }, "No audit in the chosen iterations.")]));
  }
}

function auditSection({ label, figures }) {
  const spent = figures.spent, wasted = spent.rollouts ? `; ${percent(spent.where_the_value_cannot_move / spent.rollouts)} of the ${figure(spent.rollouts)} recorded rollouts started where every reward agrees` : "";
  const charts = [calibrationChart(figures.calibration), errorChart(figures), signChart(figures), maskChart(figures.mask)].filter(Boolean);
  return el("section", { class: "audit" }, el("header", { class: "response-head" }, el("h2", {}, `Audit ${label}`, el("small", {}, ` ${figure(figures.states)} states and ${figure(figures.segments)} segments of ${figure(figures.responses)} responses, ${figure(figures.rollouts)} reference rollouts each${wasted}`))),
    el("div", { class: "charts" }, charts), figures.gradients?.length ? gradientTable(figures.gradients) : null, numbersTable(figures));
}

function percent(value) {
  return value == null ? "–" : `${figure(100 * value)} %`;
}

/** The mean reference value of the states in each tenth of the recorded values, with its 95 % interval. */
function calibrationChart(bins) {
  if (!bins.length) return null;
  const [width, height, left, right, top, bottom] = [320, 230, 40, 12, 10, 32];
  const x = (value) => left + value * (width - left - right), y = (value) => top + (1 - value) * (height - top - bottom);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "plot", "aria-label": `Calibration: ${bins.map((one) => `recorded ${figure(one.estimate)}, reference ${figure(one.reference)}`).join("; ")}` });
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(el("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }), el("text", { x: left - 5, y: y(value) + 3.5, class: "tick", "text-anchor": "end" }, String(value)), el("text", { x: x(value), y: height - bottom + 14, class: "tick", "text-anchor": "middle" }, String(value)));
  }
  svg.append(el("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "diagonal" }), el("text", { x: (left + width - right) / 2, y: height - 4, class: "tick", "text-anchor": "middle" }, "recorded value"));
  for (const one of bins) {
    const text = `recorded ${figure(one.estimate)}: reference ${figure(one.reference)}, 95 % interval ${figure(one.low)} to ${figure(one.high)}, ${one.states} states`;
    svg.append(el("g", { class: "bin" }, el("title", {}, text), el("line", { x1: x(one.estimate), x2: x(one.estimate), y1: y(one.low), y2: y(one.high), class: "whisker" }), el("circle", { cx: x(one.estimate), cy: y(one.reference), r: 2.5 + Math.min(5, Math.sqrt(one.states) / 2) })));
  }
  return el("figure", { class: "chart" }, el("figcaption", {}, el("span", { class: "chart-title" }, "Calibration")), svg, el("p", { class: "note" }, "mean of the reference rollouts, by tenths of the recorded value; the area of a dot grows with its states"));
}

function byRollouts(figures, name) {
  return figures.by_rollouts.map((one) => ({ x: Math.log2(one.rollouts), y: one[name] ?? NaN, label: `N = ${one.rollouts}` }));
}

function errorChart(figures) {
  return lineChart({ title: "Error of V", note: "mean |V̂ − V| and rank correlation, against log₂ N", axis: "iteration", series: [{ name: "mean error", points: byRollouts(figures, "absolute") }, { name: "rank correlation", points: byRollouts(figures, "rank") }] });
}

function signChart(figures) {
  return lineChart({ title: "Signs of A", note: "of the segments whose sign is certain, against log₂ N", axis: "iteration", series: ["right", "zero", "wrong"].map((name) => ({ name, points: byRollouts(figures, name) })) });
}

function maskChart(mask) {
  return lineChart({ title: "Mask p < ρ", note: "share of |advantage| in segments with a cutpoint, and of tokens, against ρ", axis: "rho", series: [["advantage", "of |advantage|"], ["tokens", "of tokens"]].map(([name, text]) => ({ name: text, points: mask.map((one) => ({ x: one.rho, y: one[name] ?? NaN, label: `ρ = ${one.rho}` })) })) });
}

function table(head, lines, label) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", { class: "figures" }, el("thead", {}, el("tr", {}, head.map((one) => el("th", { scope: "col" }, one)))), el("tbody", {}, lines.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map((one) => el("td", {}, one)))))));
}

function gradientTable(methods) {
  const widest = Math.max(...methods.map((one) => one.at_equal_tokens ?? 0), 1e-12);
  const bars = methods.map((one, i) => el("div", { class: "share-line" }, el("span", {}, one.method), el("i", { style: { width: `${Math.round((100 * (one.at_equal_tokens ?? 0)) / widest)}%`, background: SERIES_COLORS[i] } }), el("b", {}, one.relative == null ? figure(one.at_equal_tokens) : `${figure(one.relative)} ×`)));
  return el("section", { class: "panel gradients" }, el("h3", {}, "Variance of the gradient at equal tokens", el("small", {}, "variance × sampled tokens of a response, on the same responses; × relative to the first")), el("div", { class: "share-lines" }, bars),
    table(["advantages", "responses", "tokens each", "variance", "signal |E g|²", "noise / signal at equal tokens"], methods.map((one) => [one.method, ...["responses", "tokens", "variance", "signal", "noise"].map((name) => figure(one[name]))]), "gradients"));
}

function numbersTable(figures) {
  const cells = (one) => [figure(one.absolute), figure(one.rank), percent(one.right), percent(one.zero), percent(one.wrong)];
  const recorded = figures.recorded, lines = [...figures.by_rollouts.map((one) => [`${one.rollouts}`, ...cells(one)]), [`recorded (${figure(recorded.rollouts)})`, ...cells(recorded)]];
  return el("section", { class: "panel" }, el("h3", {}, "Rollouts for each state"), table(["N", "error of V", "rank", "right sign", "zero", "wrong"], lines, "errors by N"));
}
