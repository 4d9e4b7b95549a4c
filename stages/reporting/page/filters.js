// Which responses are chosen: iterations, runs, question, text, verdict, advantage and doubt; and their order.
import { el, figure } from "./dom.js";
import { segmentsWith } from "./estimators.js";
import { knobsOf, state } from "./state.js";

export const VERDICTS = {
  all: "all verdicts", right: "right", wrong: "wrong", partial: "partly right", truncated: "truncated", ungradable: "ungradable",
};
export const ORDERS = { file: "file order", advantage: "largest |advantage|", doubt: "most doubt", length: "longest", short: "shortest", reward: "highest reward" };
const textCache = new Map();
const doubtCache = new Map();

/** Whether a row belongs to the chosen runs and iterations. */
export function inIterations(model, row) {
  return inScope(model.table(row));
}

/** Whether an entry of a run and an iteration, such as an audit, is in the chosen ones. */
export function inScope({ run, iteration }) {
  if (state.runs != null && run !== state.runs) return false;
  return !state.iterations || (iteration >= state.iterations[0] && iteration <= state.iterations[1]);
}

/** Share of the tokens of a response that are cutpoints, under ρ if it was moved. */
export function doubtOf(model, row, rho) {
  const key = `${row}:${rho}`;
  if (!doubtCache.has(key)) {
    const { logprob, cut, size } = model.tokens(row), limit = Math.log(rho ?? model.table(row).options.rho ?? 0.9);
    let below = 0;
    const recorded = rho == null && model.table(row).segments;
    for (let i = 0; i < size; i++) below += recorded ? cut[i] : logprob[i] < limit ? 1 : 0;
    if (doubtCache.size > 40000) doubtCache.clear();
    doubtCache.set(key, size ? below / size : 0);
  }
  return doubtCache.get(key);
}

/** Largest |advantage| of a response; 0 if it has none. */
export function largestAdvantage(model, row) {
  const knobs = knobsOf(), moved = knobs.estimator !== "recorded" || knobs.partition != null || knobs.rho != null || knobs.interval != null;
  const segments = moved ? segmentsWith(model, row, knobs) : model.path(row).flatMap((node) => model.segmentsOf(node));
  return segments.reduce((most, one) => (Number.isNaN(one.advantage) ? most : Math.max(most, Math.abs(one.advantage))), 0);
}

export function searchText(model, row) {
  if (!textCache.has(row)) textCache.set(row, model.fullText(row).toLowerCase());
  return textCache.get(row);
}

function hasVerdict(model, row) {
  const reward = model.reward(row);
  if (state.verdict === "ungradable") return Number.isNaN(reward);
  if (state.verdict === "truncated") return model.finish(row) === "length";
  if (state.verdict === "right") return reward >= 1;
  if (state.verdict === "wrong") return reward <= 0;
  return reward > 0 && reward < 1;
}

/** Rows of whole responses that pass all filters, in the chosen order. */
export function chosenRows(model) {
  const words = state.search.trim().toLowerCase();
  const rows = model.leaves.filter((row) =>
    inIterations(model, row) &&
    (state.question == null || model.question(row) === state.question) &&
    (state.table == null || model.arrays["row.table"][row] === state.table) &&
    (state.verdict === "all" || hasVerdict(model, row)) &&
    (!state.minDoubt || doubtOf(model, row, state.rho) >= state.minDoubt) &&
    (!state.minAdvantage || largestAdvantage(model, row) >= state.minAdvantage) &&
    (!words || searchText(model, row).includes(words) || model.questions.id[model.question(row)].toLowerCase().includes(words)));
  const keys = {
    advantage: (row) => -largestAdvantage(model, row), doubt: (row) => -doubtOf(model, row, state.rho), length: (row) => -model.length(row),
    short: (row) => model.length(row), reward: (row) => -(Number.isNaN(model.reward(row)) ? -Infinity : model.reward(row)),
  };
  if (!keys[state.sort]) return rows;
  const key = new Map(rows.map((row) => [row, keys[state.sort](row)]));
  return rows.sort((a, b) => key.get(a) - key.get(b) || a - b);
}

/** The rule of a report that shows some of the responses, and other notes. */
export function notesOf(model) {
  return model.notes.length ? el("ul", { class: "notes" }, model.notes.map((note) => el("li", {}, note))) : null;
}

export function shareText(share) {
  return `${figure(100 * share)} %`;
}
