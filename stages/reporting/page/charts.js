// Small line charts, stacked bars and histograms as SVG; the number under the pointer stands in the head of the chart.
import { el, figure } from "./dom.js";

const CHART = { width: 320, height: 150, left: 44, right: 8, top: 10, bottom: 22 };
export const SERIES_COLORS = ["var(--line-1)", "var(--line-2)", "var(--line-3)", "var(--line-4)", "var(--line-5)", "var(--line-6)"];

/** Round numbers that divide a range: about `count` of them. */
export function ticks(low, high, count = 4) {
  const span = high - low || Math.abs(high) || 1, raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

function compact(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${figure(value / 1e9)}G`;
  if (size >= 1e6) return `${figure(value / 1e6)}M`;
  if (size >= 1e3) return `${figure(value / 1e3)}k`;
  return figure(value);
}

/** Labels of the ticks of an axis, with as many decimals as their distance needs. */
function tickTexts(values) {
  const step = values.length > 1 ? Math.abs(values[1] - values[0]) : 0, decimals = Math.max(0, -Math.floor(Math.log10(step || 1) + 1e-9));
  const halves = step && Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6 ? 1 : 0;
  return values.map((value) => (step >= 1e-4 && Math.abs(value) < 1000 ? value.toFixed(Math.min(6, decimals + halves)) : compact(value)));
}

function card(title, note, readout, svg, legend) {
  return el("figure", { class: "chart" }, el("figcaption", {}, el("span", { class: "chart-title" }, title), readout), svg,
    legend, note ? el("p", { class: "note" }, note) : null);
}

function frame(scaleX, scaleY, xTicks, yTicks, label) {
  const { width, height, left, right, bottom } = CHART;
  return el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "plot" },
    yTicks.map((value, i) => [
      el("line", { x1: left, x2: width - right, y1: scaleY(value), y2: scaleY(value), class: "grid" }),
      el("text", { x: left - 5, y: scaleY(value) + 3.5, class: "tick", "text-anchor": "end" }, tickTexts(yTicks)[i]),
    ]),
    xTicks.map((value, i) => el("text", { x: scaleX(value), y: height - bottom + 14, class: "tick", "text-anchor": "middle" }, tickTexts(xTicks)[i])));
}

function scales(xs, ys, zero) {
  const { width, height, left, right, top, bottom } = CHART;
  const x0 = Math.min(...xs), x1 = Math.max(...xs);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (zero) y0 = Math.min(0, y0);
  const least = 0.02 * Math.max(Math.abs(y0), Math.abs(y1)); // a flat curve looks flat
  if (y0 === 0 && y1 === 0) y1 = 1;
  else if (y1 - y0 < least) [y0, y1] = [(y0 + y1) / 2 - least, (y0 + y1) / 2 + least];
  const pad = zero ? 0 : (y1 - y0) * 0.06;
  const x = (value) => left + 6 + ((value - x0) / (x1 - x0 || 1)) * (width - left - right - 12);
  const y = (value) => top + ((y1 + pad - value) / (y1 - y0 + 2 * pad)) * (height - top - bottom);
  return { x, y, x0, x1, y0, y1 };
}

/** A line per series: {name, points: [{x, y, error, key, label}]}; bands are ± one standard error. */
export function lineChart({ title, note, series, axis, onPick }) {
  const shown = series.map((one, i) => ({ ...one, color: one.color ?? SERIES_COLORS[i], points: one.points.filter(({ y }) => Number.isFinite(y)) })).filter((one) => one.points.length);
  const all = shown.flatMap((one) => one.points);
  if (!all.length) return null;
  const { x, y, x0, x1, y0, y1 } = scales(all.map((one) => one.x), all.flatMap((one) => [one.y - (one.error ?? 0), one.y + (one.error ?? 0)]));
  const last = shown[0].points.at(-1), readout = el("output", { class: "readout" });
  const rest = () => { readout.textContent = shown.length > 1 ? "" : `${figure(last.y)}${last.error ? ` ± ${figure(last.error, 2)}` : ""}`; };
  const xTicks = ticks(x0, x1, 4).filter((value) => axis !== "iteration" || Number.isInteger(value));
  const svg = frame(x, y, xTicks, ticks(y0, y1, 4), `${title}: ${shown.map((one) => `${one.name} ends at ${figure(one.points.at(-1).y)}`).join(", ")}`);
  const rule = el("line", { class: "rule", y1: CHART.top, y2: CHART.height - CHART.bottom, visibility: "hidden" });
  svg.append(rule);
  for (const one of shown) {
    const points = [...one.points].sort((a, b) => a.x - b.x);
    const banded = points.filter((point) => point.error);
    if (banded.length > 1) {
      const upper = banded.map((point) => `${x(point.x)},${y(point.y + point.error)}`), lower = banded.map((point) => `${x(point.x)},${y(point.y - point.error)}`).reverse();
      svg.append(el("polygon", { points: [...upper, ...lower].join(" "), fill: one.color, class: "band" }));
    }
    if (points.length > 1) svg.append(el("polyline", { points: points.map((point) => `${x(point.x)},${y(point.y)}`).join(" "), stroke: one.color, class: `curve${one.dashed ? " dashed" : ""}` }));
    if (points.length <= 40) for (const point of points) svg.append(el("circle", { cx: x(point.x), cy: y(point.y), r: point.chosen === false ? 1.4 : 2.4, fill: one.color }));
  }
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * CHART.width;
    return all.reduce((best, one) => (Math.abs(x(one.x) - at) < Math.abs(x(best.x) - at) ? one : best));
  };
  svg.addEventListener("pointermove", (event) => {
    const point = nearest(event), same = shown.map((one) => [one, one.points.find((each) => each.x === point.x)]).filter(([, each]) => each);
    rule.setAttribute("x1", x(point.x)); rule.setAttribute("x2", x(point.x)); rule.setAttribute("visibility", "visible");
    readout.textContent = `${point.label}: ${same.map(([one, each]) => `${shown.length > 1 ? `${one.name} ` : ""}${figure(each.y)}${each.error ? ` ± ${figure(each.error, 2)}` : ""}`).join(" · ")}`;
  });
  svg.addEventListener("pointerleave", () => { rule.setAttribute("visibility", "hidden"); rest(); });
  if (onPick) { svg.addEventListener("click", (event) => onPick(nearest(event))); svg.classList.add("pickable"); }
  rest();
  return card(title, note, readout, svg, shown.length > 1 ? legendOf(shown) : null);
}

export function legendOf(series) {
  return el("ul", { class: "legend" }, series.map((one) => el("li", {}, el("i", { style: { background: one.color } }), one.name)));
}

/** Bars per point, stacked by series: {name, points: [{x, y, label}]}. */
export function stackedBars({ title, note, series, unit }) {
  const shown = series.map((one, i) => ({ ...one, color: SERIES_COLORS[i] })).filter((one) => one.points.some(({ y }) => y > 0));
  if (!shown.length) return null;
  const xs = [...new Set(shown.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
  const totals = new Map(xs.map((at) => [at, shown.reduce((sum, one) => sum + (one.points.find((point) => point.x === at)?.y ?? 0), 0)]));
  const { x, y, y1 } = scales(xs, [0, ...totals.values()], true);
  const readout = el("output", { class: "readout" }), width = Math.max(1.5, Math.min(18, (CHART.width - CHART.left - CHART.right - 20) / xs.length - 2));
  const total = [...totals.values()].reduce((sum, value) => sum + value, 0), rest = () => { readout.textContent = `${compact(total)} ${unit} in all`; };
  const svg = frame(x, y, ticks(xs[0], xs.at(-1), 4).filter(Number.isInteger), ticks(0, y1, 3), `${title}: ${compact(total)} ${unit} in all`);
  for (const at of xs) {
    let base = 0;
    for (const one of shown) {
      const value = one.points.find((point) => point.x === at)?.y ?? 0;
      if (value > 0) svg.append(el("rect", { x: x(at) - width / 2, width, y: y(base + value), height: Math.max(0, y(base) - y(base + value)), fill: one.color }));
      base += value;
    }
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), place = ((event.clientX - box.left) / box.width) * CHART.width;
    const at = xs.reduce((best, one) => (Math.abs(x(one) - place) < Math.abs(x(best) - place) ? one : best));
    readout.textContent = shown.map((one) => `${one.name} ${compact(one.points.find((point) => point.x === at)?.y ?? 0)}`).join(" · ");
  });
  svg.addEventListener("pointerleave", rest);
  rest();
  return card(title, note, readout, svg, legendOf(shown));
}

/** Histogram of numbers around 0: negative bars in one color, positive bars in the other. */
export function histogram({ title, note, values, bins = 31 }) {
  if (!values.length) return null;
  const largest = Math.max(1e-9, ...values.map(Math.abs)), counts = new Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.floor(((value + largest) / (2 * largest)) * bins))]++;
  const zero = values.filter((value) => Math.abs(value) <= 1e-8).length, shares = counts.map((count) => count / values.length);
  const middles = counts.map((_, i) => -largest + ((i + 0.5) * 2 * largest) / bins);
  const { x, y, y1 } = scales([-largest, largest], [0, ...shares], true);
  const readout = el("output", { class: "readout" }, `${figure((100 * zero) / values.length)} % are 0`);
  const svg = frame(x, y, ticks(-largest, largest, 4), ticks(0, y1, 3), `${title}: ${figure((100 * zero) / values.length)} % are 0`);
  const width = (x(middles[1]) - x(middles[0])) * 0.86;
  shares.forEach((share, i) => {
    const kind = Math.abs(middles[i]) < largest / bins ? "var(--muted)" : middles[i] < 0 ? "var(--negative)" : "var(--positive)";
    if (share) svg.append(el("rect", { x: x(middles[i]) - width / 2, width, y: y(share), height: y(0) - y(share), fill: kind }));
  });
  return card(title, note, readout, svg, null);
}
