// The formula panel: how the advantage of the chosen token follows from the numbers in the file, step by step.
import { el, excerpt, figure, signed, visible } from "./dom.js";
import { ESTIMATOR_NAMES, recordedOptions } from "./estimators.js";
import { average, wilson } from "./maths.js";
import { state } from "./state.js";

export function drawFormula(view, at) {
  if (at == null || at >= view.tokens.size) return [el("h3", {}, "Why this advantage"), el("p", { class: "note" }, "Choose a token of the text: its numbers appear here step by step.")];
  const { model, tokens, flags, row } = view, segment = view.segments[view.segmentAt[at]], word = tokens.word[at];
  const rho = state.rho ?? recordedOptions(model, row).rho, p = Math.exp(tokens.logprob[at]);
  const steps = [
    step("token", el("bdi", { class: "quoted" }, visible(model.words[word]) || "∅"), ` number ${at}, id ${model.arrays["word.id"][word]}`),
    step("p", `exp(${Number(tokens.logprob[at].toPrecision(4))}) = ${Number(p.toPrecision(5))} ${flags[at] ? "<" : "≥"} ρ = ${rho}`, flags[at] ? ": a cutpoint, in the mask" : ": not a cutpoint"),
  ];
  for (const one of view.seen.get(at) ?? []) steps.push(step(`step ${one.step}`, seenText(one, tokens.logprob[at])));
  if (!segment) return [el("h3", {}, "Why this advantage"), el("ol", { class: "steps" }, steps), el("p", { class: "note" }, "This token is in no segment.")];
  steps.push(step("segment", `tokens ${segment.start} to ${segment.end - 1}`, `, ${segment.end - segment.start} tokens, ${countFlags(flags, segment)} cutpoints`), ...explain(segment));
  if (segment.why?.bestOf) steps.push(step("bonus", `(1 − (1 − V)^${segment.why.bestOf}) at the end minus the same at the start`, " is added"));
  steps.push(step("A", el("b", {}, Number.isNaN(segment.advantage) ? "not known" : signed(segment.advantage, 6)), ""));
  const name = ESTIMATOR_NAMES[state.estimator === "recorded" ? recordedOptions(model, row).estimator ?? "recorded" : state.estimator] ?? state.estimator;
  return [el("h3", {}, "Why this advantage", el("small", {}, excerpt(name, 30))), el("ol", { class: "steps" }, steps)];
}

/** What the trainer saw: old and new probability, their ratio, and the advantage that multiplied it. */
function seenText(one, sampler) {
  const p = (logprob) => Number(Math.exp(logprob).toPrecision(4));
  return `p ${p(one.old)} → ${p(one.now)} (sampler ${p(sampler)}), ratio ${Number(one.ratio.toPrecision(5))}${one.clipped ? ", clipped" : ""}, A ${signed(one.advantage, 4)} after whitening, entropy ${figure(one.entropy)}`;
}

function step(name, value, rest = "") {
  return el("li", {}, el("span", { class: "step-name" }, name), el("span", {}, value, rest));
}

function countFlags(flags, { start, end }) {
  let count = 0;
  for (let at = start; at < end; at++) count += flags[at];
  return count;
}

/** Rewards as a sum and its mean: (1 + 0 + 1 + 0) / 4 = 0.5. */
function meanText(rewards) {
  const list = [...rewards], shown = list.slice(0, 9).map((one) => figure(one, 2)).join(" + ");
  return `(${shown}${list.length > 9 ? " + …" : ""}) / ${list.length} = ${figure(average(list), 4)}`;
}

function intervalText(rewards) {
  const mean = average(rewards);
  if (mean < 0 || mean > 1) return "";
  const [low, high] = wilson(mean, rewards.length);
  return `, 95 % interval ${figure(low, 2)} to ${figure(high, 2)}`;
}

function explain(segment) {
  const { why } = segment;
  if (!why || why.kind === "none" || Number.isNaN(segment.advantage)) {
    if (why?.kind === "chain") return [step("V", "not estimated at one end of this segment", ": A is known only between states that the run estimated")];
    return [step("A", why?.kind === "recorded" ? "left out by the estimator: its advantage is 0" : "no advantage is recorded")];
  }
  if (why.kind === "chain" || why.kind === "prefix-tree") {
    const from = why.from.rewards ?? [], to = why.to.rewards ?? [], what = why.kind === "chain" ? "rollouts" : "responses through the state";
    return [
      step("V(start)", from.length ? `${meanText(from)}` : `${figure(segment.valueStart, 4)}`, from.length ? `, ${from.length} ${what}${intervalText(from)}` : ", no rollout was drawn: V(end)"),
      ...(why.baseline === "leave-one-out" ? [step("without own", figure(segment.valueStart, 4), ": the response's own reward is left out")] : []),
      step("V(end)", to.length ? meanText(to) : figure(segment.valueEnd, 4), why.to.final || !to.length ? ": reward of the response" : `, ${to.length} ${what}`),
      step("V(end) − V(start)", `${figure(segment.valueEnd, 4)} − ${figure(segment.valueStart, 4)}`),
    ];
  }
  if (why.kind === "tree") {
    return [
      step("V(children)", why.values.slice(0, 9).map((one, i) => `${i === why.own ? "▸" : ""}${figure(one)}`).join(", "), why.values.length > 9 ? " …" : ""),
      step("V(start)", why.baseline === "mean" ? meanText(why.values) : `${figure(segment.valueStart, 4)}, mean of the other children`),
      step("V(end) − V(start)", `${figure(segment.valueEnd, 4)} − ${figure(segment.valueStart, 4)}`),
      ...(why.normalizeBy ? [step("÷ std", `${figure(why.std, 4)} + 10⁻⁸`, " of the siblings' values")] : []),
    ];
  }
  if (why.kind === "recorded") {
    return [
      step("V(start)", segment.rewards.length ? meanText(segment.rewards) : figure(segment.valueStart, 4), segment.rewards.length ? `${intervalText(segment.rewards)}; recorded ${figure(segment.valueStart, 4)}` : ", no reward is recorded for it"),
      step("V(end)", figure(segment.valueEnd, 4)),
      step("V(end) − V(start)", `${figure(segment.valueEnd, 4)} − ${figure(segment.valueStart, 4)} = ${signed(segment.valueEnd - segment.valueStart, 4)}`, Math.abs(segment.valueEnd - segment.valueStart - segment.advantage) > 1e-9 ? "; the estimator scales it or adds a term" : ""),
    ];
  }
  return [
    step("group", meanText(why.rewards), `, ${why.rewards.length} responses`),
    ...(why.kind === "grpo" ? [step("std", figure(why.std, 6), why.std > 1e-8 ? "" : ": all rewards agree, A is 0")] : []),
    ...(why.kind === "rloo" ? [step("others", figure(why.start, 6), ": mean of the other rewards")] : []),
    step("R", figure(segment.valueEnd, 4)),
    step(why.kind === "grpo" ? "(R − mean) / (std + 10⁻⁸)" : why.kind === "rloo" ? "R − others" : "R − mean", signed(why.advantage, 6)),
  ];
}
