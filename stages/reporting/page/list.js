// The list of responses beside the reader: filters above, virtual rows below.
import { el, excerpt, figure, VirtualList } from "./dom.js";
import { chosenRows, ORDERS, VERDICTS } from "./filters.js";
import { change, listen, state } from "./state.js";

const FILTER_NAMES = ["iterations", "runs", "question", "table", "search", "verdict", "minAdvantage", "minDoubt", "sort"];

export function rewardClass(reward) {
  return Number.isNaN(reward) ? "ungraded" : reward >= 1 ? "right" : reward <= 0 ? "wrong" : "partial";
}

export function rewardBadge(reward) {
  const sign = Number.isNaN(reward) ? "?" : reward >= 1 ? "✓" : reward <= 0 ? "✗" : figure(reward, 2);
  const words = Number.isNaN(reward) ? "ungradable" : `reward ${figure(reward)}`;
  return el("span", { class: `badge ${rewardClass(reward)}`, title: words, "aria-label": words }, sign);
}

export class ResponseList {
  constructor(model) {
    this.model = model;
    this.list = new VirtualList(54, (index) => this.row(index), "responses");
    this.counter = el("span", { class: "counter", role: "status" });
    this.chip = el("div", { class: "chips" });
    this.element = el("aside", { class: "list", "aria-label": "responses" }, this.filters(), this.list.element);
    this.update();
    listen((names) => {
      if (FILTER_NAMES.some((name) => names.has(name)) || ((state.minAdvantage || state.sort === "advantage" || state.minDoubt || state.sort === "doubt") && ["rho", "interval", "partition", "estimator"].some((name) => names.has(name)))) this.update();
      else if (names.has("row")) this.mark();
    });
  }

  filters() {
    const picker = (name, options, label) => el("select", { "aria-label": label, "data-filter": name, onchange: (event) => change({ [name]: event.target.value }) },
      Object.entries(options).map(([value, text]) => el("option", { value, selected: state[name] === value }, text)));
    const least = (name, label, step, max) => el("label", { class: "least" }, label, el("input", { type: "number", min: 0, max, step, value: state[name], "data-filter": name, onchange: (event) => change({ [name]: Number(event.target.value) || 0 }) }));
    this.search = el("input", { type: "search", placeholder: "Search text or question  /", "aria-label": "search", value: state.search, oninput: (event) => { clearTimeout(this.timer); this.timer = setTimeout(() => change({ search: event.target.value }), 120); } });
    return el("div", { class: "filters" }, this.search, el("div", { class: "pair" }, picker("verdict", VERDICTS, "verdict"), picker("sort", ORDERS, "order")),
      el("div", { class: "pair" }, least("minAdvantage", "|A| ≥ ", 0.05, undefined), least("minDoubt", "doubt ≥ ", 0.05, 1)), this.chip, this.counter);
  }

  update() {
    this.rows = chosenRows(this.model);
    this.place = new Map(this.rows.map((row, index) => [row, index]));
    this.counter.textContent = `${this.rows.length.toLocaleString("en-US")} of ${this.model.leaves.length.toLocaleString("en-US")} responses`;
    const chips = [];
    if (state.question != null) chips.push(["question", excerpt(this.model.questions.id[state.question], 40)]);
    if (state.table != null) chips.push(["table", this.model.tables[state.table].label]);
    this.chip.replaceChildren(...chips.map(([name, text]) => el("button", { class: "chip", onclick: () => change({ [name]: null }), title: "remove this filter" }, `${name === "table" ? "table" : name} ${text} `, el("b", {}, "×"))));
    this.list.show(this.rows.length);
    if (!this.rows.length) this.list.spacer.replaceChildren(el("p", { class: "empty" }, "No response passes these filters."));
    else if (!this.place.has(state.row) && (state.row == null || state.view === "reader")) this.keepOrPick();
    this.mark();
  }

  /** Show the first response where the shown one is filtered away. */
  keepOrPick() {
    queueMicrotask(() => { if (!this.place.has(state.row)) change({ row: this.rows[0], token: null }); });
  }

  mark() {
    for (const [index, element] of this.list.drawn) element.setAttribute("aria-selected", String(this.rows[index] === state.row));
    if (this.place.has(state.row)) this.list.reveal(this.place.get(state.row));
  }

  move(step) {
    const at = this.place.get(state.row) ?? -step, next = Math.min(this.rows.length - 1, Math.max(0, at + step));
    if (this.rows.length) change({ row: this.rows[next], token: null });
  }

  row(index) {
    const { model } = this, row = this.rows[index], table = model.table(row);
    const text = model.fullText(row);
    return el("div", { class: "item", role: "option", "aria-selected": String(row === state.row), "data-row": row, onclick: () => { change({ row, token: null }); document.body.classList.remove("listing"); } },
      rewardBadge(model.reward(row)),
      el("div", { class: "item-text" }, el("div", { class: "item-head" }, el("span", { class: "item-name" }, excerpt(model.name(row), 60)), el("span", { class: "item-table" }, table.label)),
        el("div", { class: "item-excerpt" }, el("bdi", {}, excerpt(text, 90) || "(empty)"))));
  }
}
