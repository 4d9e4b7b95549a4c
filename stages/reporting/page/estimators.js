// Advantages of the segments of one response under an estimator, from the rewards in the file (stages/maths/advantages.py).
//
// Each function returns segments {start, end, valueStart, valueEnd, advantage, rewards, why}: `why` has the numbers that
// the formula panel shows. A value that the file does not determine is NaN.
import { average, commonPrefix, cutpointFlags, partitionStarts, rangesOf } from "./maths.js";

export const ESTIMATOR_NAMES = {
  recorded: "as recorded", "monte-carlo": "chain", tree: "tree", grpo: "GRPO", rloo: "RLOO", "dr-grpo": "Dr. GRPO", "prefix-tree": "prefix tree",
};
const TINY = 1e-8;

/** Recorded options of the table of a row, with the defaults of spo. */
export function recordedOptions(model, row) {
  const o = model.table(row).options;
  return {
    estimator: o.estimator ?? null, baseline: o.baseline ?? "mean", normalizeBy: o.normalize_by ?? null, bestOf: o.best_of ?? null,
    partition: o.partition ?? null, rho: o.rho ?? 0.9, interval: o.interval ?? 5, segmentTokens: o.segment_tokens ?? 30, numSegments: o.num_segments ?? 3,
  };
}

/** Estimators that the data of a row allow, besides "recorded". */
export function availableEstimators(model, row) {
  const graded = model.group(row).filter((one) => !Number.isNaN(model.reward(one)));
  if (!graded.length) return [];
  const names = ["grpo", "rloo", "dr-grpo", "prefix-tree"];
  const chained = model.table(row).advantages && recordedOptions(model, row).estimator === "monte-carlo";
  return [...(model.isTree(row) ? ["tree"] : []), ...(chained ? ["monte-carlo"] : []), ...names];
}

/** Segments of a response with their advantages. `knobs`: {estimator, partition, rho, interval}; null fields are as recorded. */
export function segmentsWith(model, row, knobs = {}) {
  const options = recordedOptions(model, row);
  const estimator = knobs.estimator && knobs.estimator !== "recorded" ? knobs.estimator : null;
  const recut = knobs.partition != null || knobs.rho != null || knobs.interval != null;
  const recorded = model.recorded(row);
  const ranges = recut || !recorded.length ? recutRanges(model, row, knobs, options) : recorded.map(({ start, end }) => ({ start, end }));
  if (!estimator && !recut) return recorded.length ? recordedSegments(model, row, recorded) : ranges.map((one) => ({ ...one, ...unknownValue() }));
  const name = estimator ?? options.estimator;
  const settings = estimator === options.estimator || !estimator ? options : { ...options, bestOf: null, normalizeBy: null, baseline: "mean" };
  let found;
  if (["grpo", "rloo", "dr-grpo"].includes(name)) found = groupSegments(model, row, ranges, name);
  else if (name === "prefix-tree") found = prefixTreeSegments(model, row, ranges, settings);
  else if (name === "tree") found = recut ? knownStates(model, row, ranges) : treeSegments(model, row, settings);
  else found = recut ? knownStates(model, row, ranges) : chainSegments(recorded, model.reward(row));
  return settings.bestOf ? found.map((one) => withBestOf(one, settings.bestOf)) : found;
}

/** Recorded segments; the values of those that the estimator left out, whose advantage is 0, are computed again. */
function recordedSegments(model, row, recorded) {
  const name = recordedOptions(model, row).estimator;
  const again = model.table(row).advantages && ["tree", "prefix-tree"].includes(name) && recorded.some((one) => !one.written) ? segmentsWith(model, row, { estimator: name }) : null;
  return recorded.map((one, i) => (one.written || !again ? { ...one, why: { kind: "recorded" } } : { ...again[i], number: one.number, written: false }));
}

/** What the value of a state was estimated from: {reward, text, row?} of each kept rollout, or of each response. */
export function sourcesOf(model, row, one) {
  if (one.from) return one.from.map((leaf) => ({ reward: model.reward(leaf), row: leaf, text: model.fullText(leaf, one.start) }));
  const { estimator } = recordedOptions(model, row);
  if (!["recorded", "chain"].includes(one.why?.kind)) return [];
  if (estimator === "monte-carlo" || estimator == null) return model.rolloutsAt(row, one.start);
  const again = segmentsWith(model, row, { estimator }).find((other) => other.from && other.start === one.start);
  return again ? sourcesOf(model, row, again) : [];
}

function unknownValue() {
  return { valueStart: NaN, valueEnd: NaN, advantage: NaN, rewards: [], written: false, why: { kind: "none" } };
}

function recutRanges(model, row, knobs, options) {
  const { logprob, cut, size } = model.tokens(row);
  const partition = knobs.partition ?? (["cutpoints", "fixed", "count", "token", "trajectory"].includes(options.partition) ? options.partition : "cutpoints");
  const flags = knobs.rho == null && cut.some(Boolean) ? cut : cutpointFlags(logprob, knobs.rho ?? options.rho);
  return rangesOf(partitionStarts(partition, size, flags, { ...options, interval: knobs.interval ?? options.interval }), size);
}

/** V of every state of a response that was estimated: offset → {value, rewards}; the end has the reward. */
export function stateValues(model, row) {
  const states = new Map();
  for (const one of model.recorded(row)) {
    if (!one.written) continue;
    const known = one.rewards.length > 0 || one.rollouts > 0;
    if (known || one.start > 0) states.set(one.start, { value: one.valueStart, rewards: one.rewards, segment: one.number });
    if (!states.has(one.end)) states.set(one.end, { value: one.valueEnd, rewards: [], segment: -1 });
  }
  if (!Number.isNaN(model.reward(row))) states.set(model.tokens(row).size, { value: model.reward(row), rewards: [], segment: -1, final: true });
  return states;
}

/** Segments between arbitrary cuts: a value is known only where one was estimated. */
function knownStates(model, row, ranges) {
  const states = stateValues(model, row), none = { value: NaN, rewards: [] };
  return ranges.map(({ start, end }) => {
    const from = states.get(start) ?? none, to = states.get(end) ?? none;
    return { start, end, valueStart: from.value, valueEnd: to.value, advantage: to.value - from.value, rewards: from.rewards, why: { kind: "chain", from, to } };
  });
}

/** A = V(end) − V(start); V of a state is the mean of its rollouts, and of the last one the reward. */
export function chainSegments(recorded, reward) {
  return recorded.map((one, i) => {
    const value = (each) => (each.rewards.length ? average(each.rewards) : each.valueStart);
    const from = value(one), to = i + 1 < recorded.length ? value(recorded[i + 1]) : reward;
    const start = one.rewards.length || one.start > 0 ? from : Number.isNaN(from) ? to : from;
    return { ...one, valueStart: start, valueEnd: to, advantage: to - start, why: { kind: "chain", from: { rewards: one.rewards }, to: { rewards: recorded[i + 1]?.rewards ?? [], final: i + 1 === recorded.length } } };
  });
}

/** One value for the whole response: its reward against those of its group. */
function groupSegments(model, row, ranges, name) {
  const group = model.group(row).filter((one) => !Number.isNaN(model.reward(one)));
  const rewards = group.map((one) => model.reward(one));
  const result = siblingAdvantage(rewards, group.indexOf(row), name === "rloo" ? "leave-one-out" : "mean", name === "grpo");
  const why = { kind: name, rewards, ...result };
  return ranges.map((range) => ({ ...range, valueStart: result.start, valueEnd: model.reward(row), advantage: result.advantage, rewards: Float32Array.from(rewards), from: group, why }));
}

/** A_i = V_i − b_i among siblings; b_i is the mean of all or of the others; optionally divided by the deviation + 10⁻⁸. */
export function siblingAdvantage(values, i, baseline = "mean", scale = false) {
  if (i < 0) return { start: NaN, advantage: NaN, mean: NaN, std: NaN };
  const origin = values[0], offset = average(values.map((value) => value - origin));
  const off = values.map((value) => value - origin - offset);
  const std = Math.sqrt(average(off.map((value) => value ** 2)));
  const n = values.length, mean = origin + offset;
  let advantage = off[i], start = mean;
  if (baseline === "leave-one-out") {
    advantage = n > 1 ? (off[i] * n) / (n - 1) : values[i];
    start = values[i] - advantage;
  }
  if (scale) advantage = std > TINY ? advantage / (std + TINY) : 0;
  return { start, advantage, mean, std };
}

/** V of a node: the reward of a leaf, the mean over the children of an inner node; ungraded leaves are left out. */
export function nodeValue(model, row) {
  const children = model.children.get(row);
  if (!children) return model.reward(row);
  const known = children.map((child) => nodeValue(model, child)).filter((one) => !Number.isNaN(one));
  return known.length ? average(known) : NaN;
}

/** Rows that continue the same state as a row, itself included. */
export function siblingsOf(model, row) {
  const parent = model.arrays["row.parent"][row];
  if (parent >= 0) return model.children.get(parent);
  const { first, rows } = model.table(row), roots = [];
  for (let one = first; one < first + rows; one++) {
    if (model.arrays["row.parent"][one] < 0 && model.question(one) === model.question(row)) roots.push(one);
  }
  return roots;
}

export function leavesBelow(model, row) {
  const children = model.children.get(row);
  return children ? children.flatMap((child) => leavesBelow(model, child)) : [row];
}

function treeSegments(model, row, options) {
  const { before, size } = model.tokens(row), path = model.path(row);
  return path.map((node, i) => {
    const siblings = siblingsOf(model, node).filter((one) => !Number.isNaN(nodeValue(model, one))), values = siblings.map((one) => nodeValue(model, one)), own = siblings.indexOf(node);
    const result = siblingAdvantage(values, own, options.baseline, options.normalizeBy === "siblings");
    const leaves = siblings.flatMap((one) => leavesBelow(model, one)).filter((leaf) => !Number.isNaN(model.reward(leaf))), rewards = Float32Array.from(leaves, (leaf) => model.reward(leaf));
    return {
      start: before[i], end: i + 1 < before.length ? before[i + 1] : size, node, valueStart: result.start, valueEnd: values[own],
      advantage: result.advantage, rewards, from: leaves, why: { kind: "tree", values, own, baseline: options.baseline, normalizeBy: options.normalizeBy, ...result },
    };
  });
}

/** Responses of the group that begin with the first `length` tokens of a row. */
export function passingThrough(model, row, length) {
  const own = model.tokens(row).word.subarray(0, length);
  return model.group(row).filter((one) => !Number.isNaN(model.reward(one)) && commonPrefix(own, model.tokens(one).word) === length);
}

function prefixTreeSegments(model, row, ranges, options) {
  const reward = model.reward(row), { size } = model.tokens(row);
  const passing = ranges.map(({ start }) => passingThrough(model, row, start)), states = passing.map((rows) => rows.map((one) => model.reward(one)));
  return ranges.map((range, i) => {
    const rewards = states[i], last = range.end >= size || i + 1 === ranges.length;
    const valueEnd = last ? reward : average(states[i + 1]);
    let valueStart = average(rewards);
    if (options.baseline === "leave-one-out") valueStart = rewards.length > 1 ? (rewards.length * valueStart - reward) / (rewards.length - 1) : valueEnd;
    return {
      ...range, valueStart, valueEnd, advantage: valueEnd - valueStart, rewards: Float32Array.from(rewards), from: passing[i],
      why: { kind: "prefix-tree", from: { rewards }, to: { rewards: last ? [] : states[i + 1], final: last }, baseline: options.baseline },
    };
  });
}

/** Add the change in the probability that the best of n attempts succeeds: 1 − (1 − V)ⁿ. */
function withBestOf(one, n) {
  const best = (value) => 1 - (1 - Math.min(Math.max(value, 0), 1)) ** n;
  return { ...one, advantage: one.advantage + best(one.valueEnd) - best(one.valueStart), why: { ...one.why, bestOf: n } };
}
