// The audit of grades: answer, reference, verdict and reason of every response, the suspicious ones first.
import { el, excerpt, figure, VirtualList } from "./dom.js";
import { inIterations } from "./filters.js";
import { rewardBadge } from "./list.js";
import { quantile } from "./maths.js";
import { change, listen, state } from "./state.js";

export const SUSPICIONS = {
  ungradable: [6, "ungradable", "the grader reached no verdict"],
  equal: [5, "equal, yet wrong", "the answer is the reference, letter by letter"],
  unboxed: [4, "right without an answer", "graded right although no answer was found"],
  overlooked: [2, "holds the reference, yet wrong", "the reference, of two characters or more, is a word of its last 300 characters"],
  truncated: [3, "truncated, yet right", "graded right although it did not end"],
  short: [3, "short and right", "among the 5 % shortest right responses, less than half the median"],
  repeated: [2, "repeated", "more than half of its word triples repeat"],
  lost: [1, "no answer found", "graded wrong because no answer was found"],
};

/** Names of the suspicions about each leaf, and their weight. */
export function suspicions(model) {
  const right = model.leaves.filter((row) => model.reward(row) > 0), lengths = right.map((row) => model.length(row));
  const short = quantile(lengths, 0.05), median = quantile(lengths, 0.5);
  return model.leaves.map((row) => {
    const reward = model.reward(row), answer = model.answer(row), names = [];
    if (Number.isNaN(reward)) names.push("ungradable");
    if (reward <= 0 && answer != null && answer.trim() === (model.reference(row) ?? "").trim() && answer.trim()) names.push("equal");
    else if (reward <= 0 && endsWithReference(model, row)) names.push("overlooked");
    if (reward > 0 && answer == null) names.push("unboxed");
    if (reward > 0 && model.finish(row) === "length") names.push("truncated");
    if (reward > 0 && model.length(row) <= short && model.length(row) < median / 2) names.push("short");
    if (repetition(model, row) > 0.5) names.push("repeated");
    if (reward <= 0 && answer == null) names.push("lost");
    return { row, names, weight: Math.max(0, ...names.map((name) => SUSPICIONS[name][0])) };
  });
}

/** Whether a reference of two characters or more stands near the end of a response, not within another word or number. */
function endsWithReference(model, row) {
  const reference = (model.reference(row) ?? "").trim();
  if (reference.length < 2) return false;
  const escaped = reference.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`(?<![\\w.])${escaped}(?![\\w]|\\.\\d)`).test(model.fullText(row, Math.max(0, model.length(row) - 300)).slice(-300));
}

/** Share of the word triples of a response that occurred before in it. */
export function repetition(model, row) {
  const { word, size } = model.tokens(row), seen = new Set(), base = model.words.length;
  if (size < 24) return 0;
  for (let at = 2; at < size; at++) seen.add((word[at - 2] * base + word[at - 1]) * base + word[at]);
  return 1 - seen.size / (size - 2);
}

export class GradesView {
  constructor(model) {
    this.model = model;
    this.kind = null;
    this.element = el("div", { class: "grades-view" });
    listen((names) => { if (state.view === "grades" && ["view", "iterations", "runs"].some((name) => names.has(name))) this.draw(); });
  }

  draw() {
    const { model } = this;
    this.all ??= suspicions(model);
    const within = this.all.filter(({ row }) => inIterations(model, row));
    this.shown = within.filter(({ names }) => !this.kind || names.includes(this.kind)).sort((a, b) => b.weight - a.weight || a.row - b.row);
    const count = (name) => within.filter(({ names }) => names.includes(name)).length;
    const filters = el("div", { class: "choice", role: "radiogroup", "aria-label": "suspicion" }, [[null, ["", "all"]], ...Object.entries(SUSPICIONS)].map(([name, [, text, why]]) =>
      el("button", { role: "radio", "data-choice": `suspicion=${name}`, title: why, disabled: name != null && !count(name), "aria-checked": String(this.kind === name), onclick: () => { this.kind = name; this.draw(); } }, name ? `${text} ${count(name)}` : `${text} ${within.length}`)));
    this.list = new VirtualList(60, (index) => this.line(this.shown[index]), "graded responses");
    this.list.element.classList.add("grades");
    const suspected = within.filter(({ weight }) => weight > 0).length;
    this.element.replaceChildren(el("header", { class: "response-head" }, el("h2", {}, "Grades", el("small", {}, ` ${suspected.toLocaleString("en-US")} of ${within.length.toLocaleString("en-US")} responses deserve a look; the most suspicious come first`)), el("div", { class: "tools" }, filters)),
      el("section", { class: "panel grades-panel" }, el("div", { class: "grade-line head", "aria-hidden": "true" }, ["", "response", "answer", "reference", "why", "end of the response"].map((one) => el("span", {}, one))), this.list.element));
    this.list.show(this.shown.length);
    if (!this.shown.length) this.list.spacer.replaceChildren(el("p", { class: "empty" }, "No such response in the chosen iterations."));
  }

  line({ row, names }) {
    const { model } = this, text = model.fullText(row);
    return el("div", { class: "grade-line", role: "option", "data-row": row, onclick: () => change({ row, token: null, question: null, table: null, view: "reader" }) },
      rewardBadge(model.reward(row)), el("span", { class: "item-name" }, excerpt(model.name(row), 40), el("small", {}, `${model.table(row).label} · ${figure(model.length(row))} tokens`)),
      el("bdi", { class: "mono" }, excerpt(model.answer(row) ?? "–", 40)), el("bdi", { class: "mono" }, excerpt(model.reference(row) ?? "–", 40)),
      el("span", { class: "why" }, names.map((name) => SUSPICIONS[name][1]).join(", ") || model.finish(row), model.reason(row) ? el("small", {}, excerpt(model.reason(row), 90)) : null),
      el("bdi", { class: "mono tail" }, excerpt(text.slice(-70), 90)));
  }
}
