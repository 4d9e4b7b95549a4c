// What the page shows: one object of choices, its listeners, and its copy in the address (#view=reader&q=…&r=…&t=…).

const INITIAL_STATE = {
  view: "overview", row: null, token: null, question: null, table: null, iterations: null, runs: null, axis: "iteration",
  color: "advantage", grain: "token", estimator: "recorded", partition: null, rho: null, interval: null,
  search: "", verdict: "all", minAdvantage: 0, minDoubt: 0, sort: "file", pair: null,
};
const listeners = new Set();

export const state = { ...INITIAL_STATE };

/** Change choices and call every listener with the names that changed. */
export function change(values) {
  const names = Object.keys(values).filter((name) => JSON.stringify(state[name]) !== JSON.stringify(values[name]));
  if (!names.length) return;
  Object.assign(state, values);
  for (const listener of [...listeners]) listener(new Set(names));
}

export function listen(listener) {
  listeners.add(listener);
}

export function knobsOf() {
  return { estimator: state.estimator, partition: state.partition, rho: state.rho, interval: state.interval };
}

/** Address of what is shown now. */
export function addressOf(model) {
  const words = new URLSearchParams();
  words.set("view", state.view);
  if (state.row != null) {
    words.set("q", model.questions.id[model.question(state.row)]);
    words.set("r", model.name(state.row));
    words.set("a", String(model.arrays["row.table"][state.row]));
    if (state.token != null) words.set("t", String(state.token));
  }
  for (const name of ["estimator", "color", "partition", "rho", "interval"]) {
    if (state[name] != null && state[name] !== INITIAL_STATE[name]) words.set(name, String(state[name]));
  }
  return `#${words}`;
}

/** Choices that an address names; unknown rows are ignored. */
export function readAddress(model, hash) {
  const words = new URLSearchParams(hash.replace(/^#/, "")), found = {};
  if (words.has("q") && words.has("r")) {
    const table = words.has("a") ? Number(words.get("a")) : undefined;
    const row = model.find(words.get("q"), words.get("r"), table) ?? model.find(words.get("q"), words.get("r"));
    if (row !== undefined) Object.assign(found, { row, view: words.get("view") ?? "reader", token: words.has("t") ? Number(words.get("t")) : null });
  } else if (words.has("q")) {
    const question = model.questions.id.indexOf(words.get("q"));
    if (question >= 0) Object.assign(found, { question, view: "reader" });
  }
  if (["overview", "questions", "reader", "tree", "grades", ...(model.audits.length ? ["audit"] : [])].includes(words.get("view"))) found.view = words.get("view");
  for (const name of ["estimator", "color", "partition"]) if (words.has(name)) found[name] = words.get(name);
  for (const name of ["rho", "interval"]) if (Number(words.get(name)) > 0) found[name] = Number(words.get(name));
  return found;
}
