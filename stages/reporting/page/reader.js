// The reader: one response as text with its segments, mask and colors, and the tools around it.
import { COLOR_NAMES, advantageScale, ratioScale, unitColor } from "./colors.js";
import { el, excerpt, figure, signed, visible } from "./dom.js";
import { segmentsWith } from "./estimators.js";
import { doubtOf, shareText } from "./filters.js";
import { drawFormula } from "./formula.js";
import { drawKnobs } from "./knobs.js";
import { ResponseList, rewardBadge } from "./list.js";
import { cutpointFlags } from "./maths.js";
import { drawStaircase } from "./staircase.js";
import { change, knobsOf, listen, state } from "./state.js";

export const GRAINS = { token: "token", segment: "segment", line: "line" };
const READER_CHOICES = ["row", "color", "grain", "estimator", "partition", "rho", "interval"];

/** What is drawn of a response: its tokens, its segments under the knobs, and which tokens carry the mask. */
export function viewOf(model, row) {
  const tokens = model.tokens(row), segments = segmentsWith(model, row, knobsOf());
  const recorded = state.rho == null && model.table(row).segments;
  const flags = recorded ? tokens.cut : cutpointFlags(tokens.logprob, state.rho ?? model.table(row).options.rho ?? 0.9);
  const segmentAt = new Int32Array(tokens.size).fill(-1);
  segments.forEach((one, i) => segmentAt.fill(i, one.start, one.end));
  return { model, row, tokens, segments, flags, segmentAt, seen: model.seen(row) };
}

/** Ranges of tokens that are colored and chosen together. */
function unitsOf(view, grain) {
  const { tokens, segments, model } = view;
  if (grain === "segment" && segments.length) return segments.map(({ start, end }) => ({ start, end }));
  const units = [];
  let start = 0;
  for (let at = 0; at < tokens.size; at++) {
    if (grain !== "line" || model.words[tokens.word[at]].includes("\n") || at + 1 === tokens.size) {
      units.push({ start: grain === "line" ? start : at, end: at + 1 });
      start = at + 1;
    }
  }
  return units;
}

function measure(view, { start, end }) {
  let logprob = 0, advantage = 0, known = 0, value = NaN, logRatio = 0, seen = 0;
  for (let at = start; at < end; at++) {
    logprob += view.tokens.logprob[at];
    const segment = view.segments[view.segmentAt[at]];
    if (segment && !Number.isNaN(segment.advantage)) { advantage += segment.advantage; known++; }
    if (segment && Number.isNaN(value)) value = segment.valueStart;
    const steps = view.seen.get(at);
    if (steps) { logRatio += Math.log(steps.at(-1).ratio); seen++; }
  }
  return { probability: Math.exp(logprob / Math.max(1, end - start)), advantage: known ? advantage / known : NaN, value, ratio: seen ? Math.exp(logRatio / seen) : NaN };
}

export class Reader {
  constructor(model) {
    this.model = model;
    this.list = new ResponseList(model);
    this.main = el("article", { class: "response", "aria-label": "response" });
    this.side = el("aside", { class: "side", "aria-label": "knobs and formula" });
    this.element = el("div", { class: "reader" }, this.list.element, this.main, this.side);
    listen((names) => {
      if (state.view !== "reader") return;
      if (READER_CHOICES.some((name) => names.has(name)) || names.has("view")) this.draw();
      else if (names.has("token")) this.markToken();
    });
  }

  draw() {
    const { model } = this;
    if (state.row == null) {
      this.main.replaceChildren(el("p", { class: "empty" }, "Choose a response."));
      this.side.replaceChildren();
      return;
    }
    this.view = viewOf(model, state.row);
    this.units = unitsOf(this.view, state.grain);
    this.staircase = drawStaircase(this.view, Math.max(300, (this.main.clientWidth || 760) - 76));
    this.main.replaceChildren(this.head(), this.tools(), this.drawText(), this.staircase.element, this.group());
    const knob = document.activeElement?.dataset?.knob;
    this.drawSide();
    if (knob) this.side.querySelector(`[data-knob="${knob}"]`)?.focus();
    this.list.mark();
    this.markToken();
  }

  drawSide() {
    this.formula = el("section", { class: "panel formula", "aria-live": "polite" });
    this.side.replaceChildren(drawKnobs(this.view), this.formula);
  }

  head() {
    const { model } = this, row = state.row, question = model.question(row), fact = (name, value) => el("div", { class: "fact" }, el("dt", {}, name), el("dd", {}, value));
    const prompt = model.questions.prompt[question];
    return el("header", { class: "response-head" },
      el("div", { class: "title-line" }, rewardBadge(model.reward(row)), el("h2", {}, excerpt(model.name(row), 80)), el("span", { class: "item-table" }, model.table(row).label),
        el("button", { class: "quiet only-phone", onclick: () => document.body.classList.add("listing") }, "list")),
      prompt != null ? el("details", { class: "prompt", open: prompt.length < 400 }, el("summary", {}, "prompt"), el("pre", {}, el("bdi", {}, visible(prompt).replaceAll("⏎", "⏎\n")))) : null,
      el("dl", { class: "facts" }, fact("reward", figure(model.reward(row))), fact("answer", el("bdi", {}, excerpt(model.answer(row) ?? "none found", 60))), fact("reference", el("bdi", {}, excerpt(model.reference(row) ?? "–", 60))),
        model.reason(row) ? fact("verdict", excerpt(model.reason(row), 120)) : null, fact("ended by", model.finish(row)), fact("tokens", figure(this.view.tokens.size)), fact("mask", shareText(doubtOf(model, row, state.rho))), fact("segments", figure(this.view.segments.length))));
  }

  tools() {
    const off = { "color=ratio": this.view.seen.size ? null : "no kept token of this response is in the token metrics (spo train --token-metrics)" };
    const choice = (name, options, label) => el("div", { class: "choice", role: "radiogroup", "aria-label": label }, el("span", {}, label), Object.entries(options).map(([value, text]) =>
      el("button", { role: "radio", "aria-checked": String(state[name] === value), "data-choice": `${name}=${value}`, disabled: Boolean(off[`${name}=${value}`]), title: off[`${name}=${value}`], onclick: () => change({ [name]: value }) }, text)));
    return el("div", { class: "tools" }, choice("color", COLOR_NAMES, "color"), choice("grain", GRAINS, "unit"), this.legend());
  }

  legend() {
    const key = { advantage: ["negative", "0", "positive"], value: ["V = 0", "½", "V = 1"], probability: ["certain", "", "in doubt"], ratio: ["less likely", "1", "more likely"], none: null }[state.color];
    return el("div", { class: "key" }, key ? [el("span", {}, key[0]), el("i", { class: `ramp ${state.color}` }), el("span", {}, key[2])] : null,
      el("span", { class: "cut" }, "p < ρ"), el("span", { class: "bracket-key" }, "[ segment ]"));
  }

  /** The response as text: brackets around segments, an underline below cutpoints, a color behind units. */
  drawText() {
    const { view, units } = this, { tokens, segments, flags, model } = view;
    const scale = state.color === "ratio" ? ratioScale(view.seen) : advantageScale(segments), starts = new Map(segments.map((one, i) => [one.start, i])), ends = new Set(segments.map((one) => one.end));
    const text = el("div", { class: "text", tabindex: "0", role: "group", "aria-label": "tokens of the response", onclick: (event) => this.pick(event), onpointerover: (event) => this.hover(event) });
    this.spans = new Array(tokens.size);
    for (const unit of units) {
      const color = unitColor(state.color, measure(view, unit), scale);
      for (let at = unit.start; at < unit.end; at++) {
        const segment = segments[starts.get(at)];
        if (segment) text.append(el("span", { class: `bracket open${Number.isNaN(segment.advantage) ? " unknown" : ""}`, "aria-hidden": "true" }));
        const word = model.words[tokens.word[at]], shown = visible(word);
        const span = el("span", { class: `token${flags[at] ? " cut" : ""}${state.color === "ratio" && view.seen.get(at)?.at(-1).clipped ? " clipped" : ""}`, "data-t": at, style: { "background-color": color } }, shown || "∅");
        if (!shown) span.classList.add("nothing");
        this.spans[at] = span;
        text.append(span);
        if (word.includes("\n")) text.append("\n");
        if (ends.has(at + 1)) text.append(el("span", { class: "bracket close", "aria-hidden": "true" }));
      }
    }
    if (!tokens.size) text.append(el("p", { class: "empty" }, "This response has no tokens."));
    this.text = text;
    return text;
  }

  pick(event) {
    const at = event.target.closest?.("[data-t]")?.dataset.t;
    if (at !== undefined) change({ token: Number(at) });
  }

  hover(event) {
    const at = event.target.closest?.("[data-t]")?.dataset.t;
    if (at !== undefined) this.staircase.point(Number(at));
  }

  /** Move the chosen token by units; j and k move between responses. */
  step(by) {
    if (!this.view?.tokens.size) return;
    const at = this.units.findIndex((one) => state.token != null && state.token >= one.start && state.token < one.end);
    const next = Math.min(this.units.length - 1, Math.max(0, at + by));
    change({ token: this.units[next].start });
  }

  markToken() {
    for (const span of this.text?.querySelectorAll(".chosen, .chosen-segment") ?? []) span.classList.remove("chosen", "chosen-segment");
    const at = state.token;
    this.staircase?.point(at);
    this.formula?.replaceChildren(...drawFormula(this.view, at));
    if (at == null || !this.spans?.[at]) return;
    const segment = this.view.segments[this.view.segmentAt[at]];
    if (segment) for (let one = segment.start; one < segment.end; one++) this.spans[one].classList.add("chosen-segment");
    this.spans[at].classList.add("chosen");
    this.spans[at].scrollIntoView({ block: "nearest" });
  }

  /** The other responses to the question, in this table and in the others. */
  group() {
    const { model } = this, row = state.row, question = model.question(row);
    const others = model.leaves.filter((one) => model.question(one) === question);
    const byTable = new Map();
    for (const one of others) byTable.set(model.table(one), [...(byTable.get(model.table(one)) ?? []), one]);
    return el("section", { class: "group" }, el("h3", {}, `All responses to this question (${others.length})`),
      [...byTable].map(([table, rows]) => el("div", { class: "group-line" }, el("span", { class: "item-table" }, table.label),
        rows.slice(0, 64).map((one) => el("button", { class: `dot ${one === row ? "current" : ""}`, title: excerpt(model.name(one), 80), onclick: () => change({ row: one, token: null }) }, rewardBadge(model.reward(one)))))),
      el("div", { class: "actions" }, el("button", { class: "quiet", onclick: () => change({ question }) }, "only this question in the list"), el("button", { class: "quiet", onclick: () => change({ view: "tree" }) }, "as a tree")));
  }
}

export function advantageText(value) {
  return Number.isNaN(value) ? "not known" : signed(value);
}
