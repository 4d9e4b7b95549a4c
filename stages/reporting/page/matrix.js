// The matrix of questions and iterations: what was learned, forgotten or stays mixed; a click opens the question.
import { valueColor } from "./colors.js";
import { el, excerpt, figure, VirtualList } from "./dom.js";
import { average } from "./maths.js";
import { change, listen, state } from "./state.js";

const OUTCOMES = { learned: "learned", forgotten: "forgotten", mixed: "mixed", right: "always right", wrong: "always wrong" };

export class MatrixView {
  constructor(model) {
    this.model = model;
    this.kind = model.tables.some((one) => one.kind === "train") ? "train" : "eval";
    this.outcome = null;
    this.element = el("div", { class: "matrix-view" });
    listen((names) => { if (state.view === "questions" && ["view", "iterations", "runs"].some((name) => names.has(name))) this.draw(); });
  }

  /** Mean reward per question and table: {columns, rows: [{question, cells: [mean or null], rows}]}. */
  cells() {
    const { model } = this;
    const columns = model.tables.map((table, index) => ({ ...table, index })).filter((one) => one.kind === this.kind && (state.runs == null || one.run === state.runs) && (!state.iterations || (one.iteration >= state.iterations[0] && one.iteration <= state.iterations[1])));
    const place = new Map(columns.map((one, i) => [one.index, i])), byQuestion = new Map();
    for (const [key, leaves] of model.groups) {
      const [table, question] = key.split(":").map(Number);
      if (!place.has(table)) continue;
      const rewards = leaves.map((row) => model.reward(row)).filter((one) => !Number.isNaN(one));
      const cell = { mean: rewards.length ? average(rewards) : NaN, count: rewards.length, row: leaves[0], question };
      if (!byQuestion.has(question)) byQuestion.set(question, { question, cells: new Array(columns.length).fill(null) });
      byQuestion.get(question).cells[place.get(table)] = cell;
    }
    return { columns, rows: [...byQuestion.values()] };
  }

  draw() {
    const { columns, rows } = this.cells();
    const repeated = rows.filter((one) => one.cells.filter(Boolean).length > 1);
    this.packed = repeated.length === 0;
    const lines = this.packed ? packLines(columns, rows) : repeated.map((one) => ({ ...one, outcome: outcomeOf(one.cells) })).filter((one) => !this.outcome || one.outcome === this.outcome).sort(byOutcome);
    this.lines = lines;
    this.columns = columns;
    const size = Math.max(12, Math.min(64, Math.floor((Math.min(1460, innerWidth) - 400) / Math.max(1, columns.length)) - 2));
    this.list = new VirtualList(24, (index) => this.line(this.lines[index], size), "questions");
    this.list.element.classList.add("matrix");
    const counts = Object.fromEntries(Object.keys(OUTCOMES).map((name) => [name, repeated.filter((one) => outcomeOf(one.cells) === name).length]));
    this.element.replaceChildren(el("header", { class: "response-head" }, el("h2", {}, "Questions", el("small", {}, this.explain(columns, rows, repeated))), this.picks(counts), el("div", { class: "key" }, el("span", {}, "mean reward 0"), el("i", { class: "ramp value" }), el("span", {}, "1"))),
      rows.length ? el("section", { class: "panel matrix-panel" }, this.head(columns, size), this.list.element) : el("p", { class: "empty" }, "No question in the chosen iterations."));
    this.list.show(lines.length);
  }

  explain(columns, rows, repeated) {
    if (!rows.length) return "";
    if (this.packed) return ` ${rows.length.toLocaleString("en-US")} questions, each sampled in one iteration only; columns are iterations, sorted by mean reward. Evaluations repeat questions.`;
    return ` ${repeated.length.toLocaleString("en-US")} questions that occur in several of the ${columns.length} columns; right means a mean reward of at least ½.`;
  }

  picks(counts) {
    const kinds = [...new Set(this.model.tables.map((one) => one.kind))];
    const kind = kinds.length > 1 ? el("div", { class: "choice", role: "radiogroup", "aria-label": "responses" }, kinds.map((one) => el("button", { role: "radio", "data-choice": `kind=${one}`, "aria-checked": String(one === this.kind), onclick: () => { this.kind = one; this.outcome = null; this.draw(); } }, one === "train" ? "training" : "evaluation"))) : null;
    const outcomes = this.packed ? null : el("div", { class: "choice", role: "radiogroup", "aria-label": "outcome" }, [[null, "all"], ...Object.entries(OUTCOMES)].map(([name, text]) =>
      el("button", { role: "radio", "data-choice": `outcome=${name}`, "aria-checked": String(name === this.outcome), onclick: () => { this.outcome = name; this.draw(); } }, name ? `${text} ${counts[name]}` : text)));
    return el("div", { class: "tools" }, kind, outcomes);
  }

  head(columns, size) {
    return el("div", { class: "matrix-head", "aria-hidden": "true" }, el("span", { class: "matrix-name" }, this.packed ? "rank" : "question"), columns.map((one, i) => el("span", { class: "matrix-column", style: { width: `${size}px` }, title: `${one.label} ${this.model.runs[one.run].name}` }, columns.length <= 24 || i % 5 === 0 ? one.label.replace(/^0+(?=\d)/, "").replace(" eval", "") : "")));
  }

  line(line, size) {
    const { model } = this;
    return el("div", { class: "matrix-line", role: "option", "aria-label": line.outcome ? `${model.questions.id[line.question]}: ${OUTCOMES[line.outcome]}` : undefined },
      el("span", { class: "matrix-name" }, line.outcome ? excerpt(model.questions.id[line.question], 44) : String(line.rank)),
      line.cells.map((cell, i) => cell ? el("button", { class: "cell", style: { width: `${size}px`, "background-color": Number.isNaN(cell.mean) ? "transparent" : valueColor(cell.mean) }, "data-question": cell.question, title: `${excerpt(model.questions.id[cell.question], 60)}, ${this.columns[i].label}: ${figure(cell.mean)} of ${cell.count}`, "aria-label": `${excerpt(model.questions.id[cell.question], 60)}, ${this.columns[i].label}: mean reward ${figure(cell.mean)}`, onclick: () => change({ question: cell.question, row: cell.row, token: null, view: "reader" }) }, Number.isNaN(cell.mean) ? "?" : "") : el("span", { class: "cell none", style: { width: `${size}px` } })),
      line.outcome ? el("span", { class: "outcome" }, OUTCOMES[line.outcome]) : null);
  }
}

function outcomeOf(cells) {
  const right = cells.filter((one) => one && !Number.isNaN(one.mean)).map((one) => one.mean >= 0.5);
  if (right.every(Boolean)) return "right";
  if (!right.some(Boolean)) return "wrong";
  if (right[0] !== right.at(-1) && right.every((one, i) => i === 0 || one === right[i - 1] || one === right.at(-1))) return right.at(-1) ? "learned" : "forgotten";
  return "mixed";
}

function byOutcome(a, b) {
  const order = ["forgotten", "mixed", "learned", "wrong", "right"];
  return order.indexOf(a.outcome) - order.indexOf(b.outcome) || a.question - b.question;
}

/** Questions that occur once: the n-th best of every iteration in one line. */
function packLines(columns, rows) {
  const ranked = columns.map((_, i) => rows.map((one) => one.cells[i]).filter(Boolean).sort((a, b) => (b.mean || 0) - (a.mean || 0)));
  const size = Math.max(0, ...ranked.map((one) => one.length));
  return Array.from({ length: size }, (_, rank) => ({ rank: rank + 1, cells: ranked.map((one) => one[rank] ?? null) }));
}
