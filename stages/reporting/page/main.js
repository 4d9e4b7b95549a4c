// Start of the page: unpack the data, build the header and the views, follow the address and the keyboard.
import { AuditView } from "./audit.js";
import { unpack } from "./data.js";
import { el, figure } from "./dom.js";
import { segmentsWith } from "./estimators.js";
import { GradesView } from "./grades.js";
import { MatrixView } from "./matrix.js";
import { Model } from "./model.js";
import { AXES, drawOverview } from "./overview.js";
import { Reader } from "./reader.js";
import { addressOf, change, listen, readAddress, state } from "./state.js";
import { TreeView } from "./tree.js";

const VIEW_NAMES = { overview: "Overview", questions: "Questions", reader: "Reader", tree: "Tree", grades: "Grades", audit: "Audit" };
const KEYS = [
  ["1 … 6", "overview, questions, reader, tree, grades, audit"], ["j  k", "next, previous response"], ["→  ←", "next, previous token (or segment, line)"],
  ["/", "search"], ["t", "light, dark or as the system"], ["Esc", "leave a field, close this help"], ["?", "this help"],
];

async function start() {
  const app = document.getElementById("app");
  let model;
  try {
    const holder = document.getElementById("data");
    model = new Model(await unpack(holder.textContent));
    holder.textContent = "";
  } catch (error) {
    app.replaceChildren(el("p", { class: "empty" }, `The data of this report cannot be read (${error.message}). A browser of 2023 or later is needed; or write the report again.`));
    throw error;
  }
  const main = el("main", { id: "main" }), help = helpDialog();
  const views = {};
  app.removeAttribute("aria-busy");
  const show = (names) => {
    if (names.has("view") || (state.view === "overview" && ["axis", "iterations", "runs"].some((name) => names.has(name)))) {
      if (state.view === "overview") main.replaceChildren(drawOverview(model));
      else if (main.firstChild !== views[state.view].element) main.replaceChildren(views[state.view].element);
      document.body.dataset.view = state.view;
    }
    const address = addressOf(model);
    if (address !== location.hash) history.replaceState(null, "", address);
  };
  listen(show); // first, so that a view is in the page when it is drawn
  Object.assign(views, { questions: new MatrixView(model), reader: new Reader(model), tree: new TreeView(model), grades: new GradesView(model), audit: new AuditView(model) });
  app.replaceChildren(header(model, help), main, help);
  listen((names) => { if (names.has("view")) for (const tab of document.querySelectorAll("[data-view-tab]")) tab.setAttribute("aria-selected", String(tab.dataset.viewTab === state.view)); });
  addEventListener("hashchange", () => change(readAddress(model, location.hash)));
  addEventListener("keydown", (event) => onKey(event, views.reader, help));
  const first = model.leaves.find((row) => model.table(row).advantages) ?? model.leaves[0] ?? null;
  const wanted = { row: first, ...readAddress(model, location.hash) };
  Object.assign(state, { ...wanted, view: "none" });
  change({ view: wanted.view ?? (first == null && model.audits.length ? "audit" : "overview") });
  // For tests, and for a look at the data in the console of the browser.
  globalThis.report = { model, state, change, segmentsWith: (row, knobs) => segmentsWith(model, row, knobs), readyAfter: performance.now() };
}

function header(model, help) {
  const tabs = el("nav", { class: "tabs", role: "tablist", "aria-label": "views" }, Object.entries(VIEW_NAMES).filter(([name]) => name !== "audit" || model.audits.length).map(([name, text]) => el("button", { role: "tab", "data-view-tab": name, "aria-selected": String(state.view === name), onclick: () => change({ view: name }) }, text)));
  const runs = model.runs.length > 1 ? el("select", { "aria-label": "run", "data-filter": "runs", onchange: (event) => change({ runs: event.target.value === "" ? null : Number(event.target.value) }) }, el("option", { value: "" }, "all runs"), model.runs.map((run, i) => el("option", { value: i }, run.name))) : null;
  const axis = el("select", { "aria-label": "axis of the curves", class: "axis", "data-filter": "axis", onchange: (event) => change({ axis: event.target.value }) }, Object.entries(AXES).map(([value, text]) => el("option", { value }, `against ${text}`)));
  return el("header", { class: "top" }, el("div", { class: "brand" }, el("b", {}, "spo report"), el("span", { title: model.runs.map((run) => run.path).join("\n") }, model.title)), tabs,
    el("div", { class: "scope" }, runs, axis, iterationPicker(model), el("span", { class: "corner" }, el("button", { class: "quiet", title: "light or dark (t)", "aria-label": "light or dark", onclick: nextTheme }, "◐"), el("button", { class: "quiet", title: "keyboard help (?)", "aria-label": "keyboard help", onclick: () => help.showModal() }, "?"))));
}

/** Bars of reward, one per iteration: click one, drag over several; again for all. */
function iterationPicker(model) {
  const numbers = [...new Set(model.tables.map((one) => one.iteration))].sort((a, b) => a - b);
  if (numbers.length < 2) return null;
  const rewardAt = (number) => { const point = model.iterations.find((one) => one.iteration === number && (one.reward?.length || one.accuracy?.length)); return point ? (point.reward ?? point.accuracy)[0] : 0; };
  const bars = numbers.map((number) => el("button", { class: "bar", "data-iteration": number, title: `iteration ${number < 0 ? "start" : number}: reward ${figure(rewardAt(number))}`, "aria-label": `iteration ${number < 0 ? "start" : number}` }, el("i", { style: { height: `${Math.round(15 + 85 * Math.min(1, Math.max(0, rewardAt(number))))}%` } })));
  const output = el("output", { class: "chosen-iterations" }), strip = el("div", { class: "strip", role: "group", "aria-label": "iterations" }, bars);
  let from = null;
  const numberOf = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest?.("[data-iteration]")?.dataset.iteration;
  const select = (a, b) => change({ iterations: [Math.min(a, b), Math.max(a, b)] });
  strip.addEventListener("pointerdown", (event) => { const at = numberOf(event); if (at !== undefined) from = Number(at); });
  strip.addEventListener("pointermove", (event) => { const at = numberOf(event); if (from != null && event.buttons && at !== undefined && Number(at) !== from) select(from, Number(at)); });
  strip.addEventListener("click", (event) => {
    const number = Number(event.target.closest("[data-iteration]")?.dataset.iteration ?? NaN);
    if (Number.isNaN(number)) return;
    const only = state.iterations && state.iterations[0] === number && state.iterations[1] === number;
    if (from == null || from === number) change({ iterations: only ? null : [number, number] });
    from = null;
  });
  addEventListener("pointerup", () => setTimeout(() => { from = null; }, 0));
  const mark = () => {
    const inside = (number) => !state.iterations || (number >= state.iterations[0] && number <= state.iterations[1]);
    for (const bar of bars) bar.setAttribute("aria-pressed", String(Boolean(state.iterations) && inside(Number(bar.dataset.iteration))));
    const name = (number) => (number < 0 ? "start" : String(number));
    output.textContent = !state.iterations ? "all iterations" : state.iterations[0] === state.iterations[1] ? `iteration ${name(state.iterations[0])}` : `${name(state.iterations[0])} to ${name(state.iterations[1])}`;
    clear.hidden = !state.iterations;
  };
  const clear = el("button", { class: "quiet", title: "all iterations", "aria-label": "all iterations", onclick: () => change({ iterations: null }) }, "×");
  listen((names) => { if (names.has("iterations")) mark(); });
  mark();
  return el("div", { class: "iterations" }, strip, output, clear);
}

function helpDialog() {
  const dialog = el("dialog", { class: "help", "aria-label": "keyboard help" }, el("h2", {}, "Keyboard"), el("dl", {}, KEYS.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    el("p", { class: "note" }, "Color: blue is above zero, orange below. The underline marks tokens with p < ρ, brackets mark segments. The address of this page names what is shown: copy it to share a token."), el("button", { onclick: () => dialog.close() }, "close"));
  return dialog;
}

function nextTheme() {
  const themes = ["", "light", "dark"], now = document.documentElement.dataset.theme ?? "";
  const next = themes[(themes.indexOf(now) + 1) % themes.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
}

function onKey(event, reader, help) {
  const field = event.target.closest?.("input, select, textarea");
  if (event.key === "Escape") { event.target.blur?.(); document.body.classList.remove("listing"); return; }
  if (field || event.metaKey || event.ctrlKey || event.altKey || help.open) return;
  const view = Object.keys(VIEW_NAMES)[Number(event.key) - 1];
  if (view && document.querySelector(`[data-view-tab="${view}"]`)) change({ view });
  else if (event.key === "j" || event.key === "k") { change({ view: "reader" }); reader.list.move(event.key === "j" ? 1 : -1); }
  else if ((event.key === "ArrowRight" || event.key === "ArrowLeft") && state.view === "reader") { event.preventDefault(); reader.step(event.key === "ArrowRight" ? 1 : -1); }
  else if (event.key === "/") { event.preventDefault(); change({ view: "reader" }); reader.list.search.focus(); }
  else if (event.key === "?") help.showModal();
  else if (event.key === "t") nextTheme();
}

start();
