// Overview: learning curves, cost and advantages of the chosen iterations.
import { histogram, lineChart, stackedBars } from "./charts.js";
import { el, figure } from "./dom.js";
import { notesOf, inIterations } from "./filters.js";
import { change, state } from "./state.js";

const OVERVIEW_CURVES = [
  ["reward", "Reward", "mean over questions, ± 1 standard error"],
  ["accuracy", "Accuracy", "of the evaluations"],
  ["entropy", "Entropy", "of the trained tokens, nats"],
  ["kl", "KL to the reference", "k3 estimate, nats a token"],
  ["clipped", "Clipped share", "of the trained tokens"],
  ["mask", "Mask share", "of the tokens that carry loss"],
  ["mismatch", "Sampler mismatch", "KL between sampler and trainer"],
  ["staleness", "Staleness", "iterations of training between the sampler and the policy"],
  ["length", "Response length", "tokens"],
  ["truncated", "Truncated share", "of the responses"],
  ["agreeing", "Agreeing questions", "whose responses all have the same reward"],
  ["loss", "Loss", ""],
  ["grad_norm", "Gradient norm", "before clipping"],
];
export const AXES = { iteration: "iteration", sampled: "sampled tokens", trained: "trained tokens", seconds: "seconds" };

/** Position of every iteration on the chosen axis; costs accumulate within a run, without evaluation and warm start. */
function positions(model, axis) {
  const sums = new Map();
  return model.iterations.map((point) => {
    if (axis === "iteration") return point.iteration;
    const name = axis, spent = Object.entries(point.stages).filter(([stage]) => stage !== "eval" && stage !== "sft").reduce((sum, [, cost]) => sum + (cost[name] ?? 0), 0);
    sums.set(point.run, (sums.get(point.run) ?? 0) + spent);
    return sums.get(point.run);
  });
}

export function drawOverview(model) {
  const xs = positions(model, state.axis);
  const chosen = (point) => !state.iterations || (point.iteration >= state.iterations[0] && point.iteration <= state.iterations[1]);
  const pick = (point) => change({ iterations: [point.key, point.key] });
  const bySeries = (get) => model.runs.map((run, index) => ({
    name: run.name,
    points: model.iterations.map((point, i) => ({ point, x: xs[i] })).filter(({ point }) => point.run === index).map(({ point, x }) => {
      const value = get(point);
      const [y, error] = Array.isArray(value) ? value : [value, undefined];
      return { x, y: y ?? NaN, error, key: point.iteration, label: iterationName(point.iteration), chosen: chosen(point) };
    }),
  }));
  const charts = OVERVIEW_CURVES.map(([name, title, note]) => lineChart({ title, note, axis: state.axis, series: bySeries((point) => point[name]), onPick: pick }));
  const stages = [...new Set(model.iterations.flatMap((point) => Object.keys(point.stages)))];
  const stacked = (name) => stages.map((stage) => ({ name: stage, points: model.iterations.filter((point) => point.iteration >= 0 || stage !== "train").map((point) => ({ x: point.iteration, y: point.stages[stage]?.[name] ?? 0 })) }));
  charts.push(
    stackedBars({ title: "Tokens sampled", note: "by stage and iteration", unit: "tokens", series: stacked("sampled") }),
    stackedBars({ title: "Seconds", note: "by stage; training counts its optimizer steps", unit: "s", series: stacked("seconds") }),
    advantageChart(model),
  );
  return el("div", { class: "overview" }, headline(model), el("div", { class: "charts" }, charts.filter(Boolean)));
}

export function iterationName(number) {
  return number < 0 ? "start" : `iteration ${number}`;
}

function advantageChart(model) {
  const a = model.arrays, values = [];
  for (let i = 0; i < a["segment.row"].length; i++) {
    const value = a["segment.advantage"][i];
    if (!Number.isNaN(value) && inIterations(model, a["segment.row"][i])) values.push(value);
  }
  return histogram({ title: "Advantages", note: "of the segments shown, chosen iterations", values });
}

/** First and last numbers of each run, as sentences of figures. */
function headline(model) {
  return el("div", { class: "headline" }, model.runs.map((run, index) => {
    const points = model.iterations.filter((point) => point.run === index);
    const ends = (name) => points.filter((point) => point[name]?.length).map((point) => point[name]);
    const tile = (title, list) => list.length ? el("div", { class: "tile" }, el("span", {}, title),
      el("b", {}, list.length > 1 ? `${figure(list[0][0])} → ${figure(list.at(-1)[0])}` : figure(list[0][0])),
      el("small", {}, list.at(-1)[1] ? `± ${figure(list.at(-1)[1], 2)}` : " ")) : null;
    const sum = (name) => points.reduce((total, point) => total + Object.values(point.stages).reduce((all, cost) => all + (cost[name] ?? 0), 0), 0);
    const total = (title, value, unit) => value ? el("div", { class: "tile" }, el("span", {}, title), el("b", {}, figure(value)), el("small", {}, unit)) : null;
    const responses = points.reduce((all, point) => all + (point.responses ?? 0), 0);
    return el("section", { class: "run" }, model.runs.length > 1 ? el("h2", {}, el("i", { style: { background: `var(--line-${index + 1})` } }), run.name) : null,
      el("div", { class: "tiles" }, tile("Accuracy", ends("accuracy")), tile("Reward", ends("reward")), tile("Length", ends("length")),
        total("Responses", responses, `${points.filter((point) => point.iteration >= 0 && point.responses).length} iterations`), total("Sampled", sum("sampled"), "tokens"), total("Time", sum("seconds"), "seconds")));
  }), notesOf(model));
}
