// Live knobs: partition, ρ, interval and estimator; they recut the shown response and repaint it at once.
import { el, figure } from "./dom.js";
import { availableEstimators, ESTIMATOR_NAMES, recordedOptions, segmentsWith } from "./estimators.js";
import { doubtOf, inIterations, shareText } from "./filters.js";
import { change, knobsOf, state } from "./state.js";

const PARTITION_NAMES = { "": "as recorded", cutpoints: "cutpoints", fixed: "fixed length", count: "count", token: "token", trajectory: "whole response" };

export function drawKnobs(view) {
  const { model, row } = view, options = recordedOptions(model, row), allowed = availableEstimators(model, row);
  const recut = model.isTree(row) ? "Each node of a tree is a segment; moving ρ repaints its mask." : null;
  const moved = Object.entries(knobsOf()).some(([name, value]) => value != null && !(name === "estimator" && value === "recorded"));
  const estimator = el("select", { "aria-label": "estimator", "data-knob": "estimator", onchange: (event) => change({ estimator: event.target.value }) },
    ["recorded", ...allowed].map((name) => el("option", { value: name, selected: state.estimator === name }, name === "recorded" && options.estimator ? `as recorded (${ESTIMATOR_NAMES[options.estimator] ?? options.estimator})` : ESTIMATOR_NAMES[name])));
  const partition = el("select", { "aria-label": "partition", "data-knob": "partition", onchange: (event) => change({ partition: event.target.value || null }) },
    Object.entries(PARTITION_NAMES).map(([value, text]) => el("option", { value, selected: (state.partition ?? "") === value }, !value && options.partition ? `as recorded (${options.partition})` : text)));
  return el("section", { class: "panel knobs" }, el("h3", {}, "Knobs", el("button", { class: "quiet", disabled: !moved, onclick: () => change({ estimator: "recorded", partition: null, rho: null, interval: null }) }, "reset")),
    el("label", {}, "estimator", estimator), el("label", {}, "partition", partition),
    slider("ρ", "rho", state.rho ?? options.rho, 0.01, 1, 0.01, state.rho != null), slider("interval", "interval", state.interval ?? options.interval, 1, 32, 1, state.interval != null),
    el("p", { class: "effect", role: "status" }, effectOf(view)), recut ? el("p", { class: "note" }, recut) : null, maskOfAll(model));
}

function slider(label, name, value, min, max, step, moved) {
  const number = el("output", { class: moved ? "moved" : "" }, figure(value, 2));
  return el("label", { class: "slider" }, el("span", {}, label), el("input", {
    type: "range", min, max, step, value, "data-knob": name, "aria-label": label, oninput: (event) => { number.textContent = event.target.value; },
    onchange: (event) => change({ [name]: Number(event.target.value) }),
  }), number);
}

/** What the knobs do to this response. */
function effectOf({ model, row, segments }) {
  const before = segmentsWith(model, row, {}), known = segments.filter((one) => !Number.isNaN(one.advantage)).length;
  const mask = doubtOf(model, row, state.rho), recorded = doubtOf(model, row, null);
  return `${segments.length} segments${segments.length !== before.length ? ` (recorded: ${before.length})` : ""}, ${known} with an advantage; mask ${shareText(mask)}${mask !== recorded ? ` (recorded: ${shareText(recorded)})` : ""}`;
}

/** Mask share over all chosen iterations, computed after the page is drawn. */
function maskOfAll(model) {
  const line = el("p", { class: "note" }, "…");
  requestAnimationFrame(() => {
    let sum = 0, count = 0;
    for (const row of model.leaves) if (inIterations(model, row)) { const size = model.length(row); sum += doubtOf(model, row, state.rho) * size; count += size; }
    line.textContent = count ? `Mask over the chosen iterations: ${shareText(sum / count)} of ${figure(count)} tokens.` : "No response in the chosen iterations.";
  });
  return line;
}
