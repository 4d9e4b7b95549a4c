// The value staircase: V̂ along the response with its Wilson interval, one dot per rollout, and the doubt of each token.
import { el, excerpt, figure } from "./dom.js";
import { sourcesOf } from "./estimators.js";
import { average, wilson } from "./maths.js";
import { change } from "./state.js";
import { rewardBadge } from "./list.js";

const STAIR = { height: 190, left: 40, right: 14, top: 20, bottom: 18, doubt: 34 };

/** Draw the staircase of a response in at least `room` pixels; long responses scroll. */
export function drawStaircase(view, room) {
  const { tokens, segments, model, row } = view, size = Math.max(1, tokens.size);
  const width = Math.max(room, Math.min(6000, size * 5)), { height, left, right, top, bottom, doubt } = STAIR;
  const rewards = segments.flatMap((one) => [...one.rewards, one.valueStart, one.valueEnd]).concat([0, 1, model.reward(row)]).filter(Number.isFinite);
  const low = Math.min(...rewards), high = Math.max(...rewards);
  const x = (at) => left + (at / size) * (width - left - right), y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height + doubt}`, width, height: height + doubt, class: "stairs", role: "img", "aria-label": describeStairs(segments, model.reward(row)) });
  for (const value of [low, (low + high) / 2, high]) {
    svg.append(el("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }), el("text", { x: left - 6, y: y(value) + 4, class: "tick", "text-anchor": "end" }, figure(value, 2)));
  }
  svg.append(el("text", { x: 2, y: 11, class: "tick" }, "V̂"));
  const unit = low >= 0 && high <= 1;
  segments.forEach((one) => drawStep(svg, one, x, y, unit));
  const states = segments.filter((one) => Number.isFinite(one.valueStart) && !isAssumed(one));
  if (!states.length) svg.append(el("text", { x: (left + width - right) / 2, y: height / 2, class: "tick", "text-anchor": "middle" }, "No value was estimated for this response."));
  for (const one of states) svg.append(stateMark(one, x, y, view));
  const reward = model.reward(row);
  if (Number.isFinite(reward)) svg.append(el("path", { d: `M${x(size)} ${y(reward) - 6} l6 6 l-6 6 l-6 -6 z`, class: "outcome" }, el("title", {}, `reward ${figure(reward)}`)));
  drawDoubt(svg, view, x, height + 2, doubt);
  const cursor = el("line", { class: "cursor", y1: top - 12, y2: height + doubt, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect(), at = Math.floor((((event.clientX - box.left) / box.width) * width - left) / (width - left - right) * size);
    if (!event.target.closest(".state") && at >= 0 && at < tokens.size) change({ token: at });
  });
  const rollouts = el("div", { class: "rollouts" });
  view.showRollouts = (one) => rollouts.replaceChildren(rolloutPanel(view, one));
  const element = el("section", { class: "panel stairs-panel" }, el("h3", {}, "Value along the response", el("small", {}, "step V̂ · band 95 % Wilson interval · dot one rollout · diamond reward · bars 1 − p")), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "value staircase" }, svg), rollouts);
  return {
    element,
    point: (at) => {
      cursor.setAttribute("visibility", at == null ? "hidden" : "visible");
      if (at != null) { cursor.setAttribute("x1", x(at + 0.5)); cursor.setAttribute("x2", x(at + 0.5)); }
    },
  };
}

function describeStairs(segments, reward) {
  const values = segments.filter((one) => Number.isFinite(one.valueStart)).map((one) => `token ${one.start}: ${figure(one.valueStart)}`);
  return `Value along the response. ${values.slice(0, 12).join(", ")}${values.length > 12 ? " …" : ""}; reward ${figure(reward)}`;
}

/** Whether the value of a segment is not estimated but that of its end: its tokens are nearly certain. */
function isAssumed(one) {
  return one.rewards.length === 0 && one.valueStart === one.valueEnd;
}

function drawStep(svg, one, x, y, unit) {
  if (!Number.isFinite(one.valueStart)) {
    svg.append(el("rect", { x: x(one.start), width: Math.max(1, x(one.end) - x(one.start)), y: y(1), height: Math.max(1, y(0) - y(1)), class: "unknown" }, el("title", {}, "V was not estimated at this cut")));
    return;
  }
  if (one.rewards.length && unit) {
    const [from, to] = wilson(Math.min(1, Math.max(0, average(one.rewards))), one.rewards.length);
    svg.append(el("rect", { x: x(one.start), width: Math.max(1, x(one.end) - x(one.start)), y: y(to), height: Math.max(1, y(from) - y(to)), class: "interval" }));
  }
  const assumed = isAssumed(one);
  svg.append(el("line", { x1: x(one.start), x2: x(one.end), y1: y(one.valueStart), y2: y(one.valueStart), class: assumed ? "step assumed" : "step" }, assumed ? el("title", {}, "the policy is nearly certain here: V is that of the next state") : null));
  if (Number.isFinite(one.valueEnd)) svg.append(el("line", { x1: x(one.end), x2: x(one.end), y1: y(one.valueStart), y2: y(one.valueEnd), class: one.valueEnd < one.valueStart ? "jump down" : "jump up" }));
}

/** A state with one dot per rollout, stacked to the right at the height of its reward. */
function stateMark(one, x, y, view) {
  const open = () => { view.showRollouts(one); change({ token: Math.min(one.start, view.tokens.size - 1) }); };
  const mark = el("g", { class: "state", tabindex: "0", role: "button", "aria-label": `state before token ${one.start}: V ${figure(one.valueStart)} from ${one.rewards.length} rewards`, onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } });
  mark.append(el("rect", { x: x(one.start) - 5, width: 10 + Math.min(one.rewards.length, 8) * 3, y: 4, height: STAIR.height - 8, class: "hit" }));
  const seen = new Map();
  for (const reward of [...one.rewards].slice(0, 64)) {
    const rank = seen.get(reward) ?? 0;
    seen.set(reward, rank + 1);
    mark.append(el("circle", { cx: x(one.start) + 3 + (rank % 8) * 4, cy: y(reward) + (reward > 0.5 ? -1 : 1) * (5 + Math.floor(rank / 8) * 4), r: 1.7, class: reward > 0.5 ? "rollout right" : "rollout wrong" }));
  }
  mark.append(el("circle", { cx: x(one.start), cy: y(one.valueStart), r: 3.4, class: "knot" }));
  return mark;
}

function drawDoubt(svg, { tokens, flags, model, row }, x, top, height) {
  const bar = Math.max(0.8, x(1) - x(0) - 0.8);
  for (let at = 0; at < tokens.size; at++) {
    const doubt = 1 - Math.exp(Math.min(0, tokens.logprob[at]));
    if (doubt > 0.004) svg.append(el("rect", { x: x(at), width: bar, y: top + height - doubt * height, height: doubt * height, class: flags[at] ? "doubt cut" : "doubt" }));
  }
  svg.append(el("line", { x1: x(0), x2: x(tokens.size), y1: top + height, y2: top + height, class: "grid" }));
}

function rolloutPanel(view, one) {
  const sources = sourcesOf(view.model, view.row, one), shown = sources.length ? sources : [...one.rewards].map((reward) => ({ reward }));
  const n = one.rewards.length, mean = n ? average(one.rewards) : one.valueStart, [from, to] = wilson(Math.min(1, Math.max(0, mean)), n);
  return el("div", { class: "rollout-list" }, el("h4", {}, `State before token ${one.start}: V̂ = ${figure(one.valueStart)}`, n ? el("small", {}, `mean of ${n} rewards, 95 % interval ${figure(from, 2)} to ${figure(to, 2)}`) : el("small", {}, "no rollout was drawn here")),
    el("ol", {}, shown.slice(0, 256).map((source) => el("li", {}, rewardBadge(source.reward), sourceText(view.model, source)))),
    shown.length > 256 ? el("p", { class: "note" }, `${shown.length - 256} more are not listed.`) : null,
    n && !sources.length ? el("p", { class: "note" }, "Rewards only: the texts of these rollouts were not kept (spo estimate --keep-rollouts).") : null);
}

/** The text of a rollout, or of a response from the state on, which opens the response. */
function sourceText(model, { text, row, tokens, finish }) {
  if (text == null) return null;
  const shown = excerpt(text, 400) || "∅";
  if (row === undefined) return [el("bdi", {}, shown), el("span", { class: "item-table" }, `${figure(tokens)} tokens${finish === "stop" ? "" : `, ${finish}`}`)];
  return [el("button", { class: "chip", onclick: () => change({ row, token: null }) }, excerpt(model.name(row), 40)), el("bdi", {}, shown)];
}
