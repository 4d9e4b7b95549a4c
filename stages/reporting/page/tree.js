// The tree of a question as an icicle (width = leaves, color = V), its paths, and the difference of two siblings.
import { valueColor } from "./colors.js";
import { el, excerpt, figure, signed, visible } from "./dom.js";
import { leavesBelow, nodeValue } from "./estimators.js";
import { rewardBadge } from "./list.js";
import { average, commonPrefix } from "./maths.js";
import { change, listen, state } from "./state.js";

const ICICLE = { row: 46, leaf: 16 };

/** Nodes of a sampled tree, or of the tree that the shared prefixes of a group form: {begin, words, leaves, value, children}. */
export function treeOf(model, row) {
  const group = model.group(row);
  return model.isTree(row) ? sampledTree(model, row) : prefixTree(model, group);
}

function sampledTree(model, row) {
  const { first, rows } = model.table(row), a = model.arrays;
  const node = (one) => {
    const { before } = model.tokens(one);
    return {
      row: one, name: model.name(one).split("/").pop(), begin: before.at(-1), words: [...a["token.word"].subarray(a["row.first"][one], a["row.first"][one + 1])],
      leaves: leavesBelow(model, one), value: nodeValue(model, one), children: (model.children.get(one) ?? []).map(node),
      advantage: model.segmentsOf(one)[0]?.advantage ?? NaN,
    };
  };
  const roots = [];
  for (let one = first; one < first + rows; one++) if (a["row.parent"][one] < 0 && model.question(one) === model.question(row)) roots.push(node(one));
  return { name: "prompt", begin: 0, words: [], leaves: roots.flatMap((one) => one.leaves), value: average(roots.map((one) => one.value)), children: roots };
}

function prefixTree(model, rows) {
  const words = new Map(rows.map((row) => [row, model.tokens(row).word]));
  const build = (members, begin, name) => {
    const head = words.get(members[0]);
    let end = head.length;
    for (const row of members.slice(1)) end = Math.min(end, begin + commonPrefix(head.subarray(begin), words.get(row).subarray(begin)));
    const branches = new Map();
    for (const row of members) {
      const next = words.get(row)[end] ?? `end of ${row}`;
      branches.set(next, [...(branches.get(next) ?? []), row]);
    }
    const graded = members.map((row) => model.reward(row)).filter((one) => !Number.isNaN(one));
    const single = members.length === 1 || end >= head.length && branches.size === 1;
    return {
      row: members[0], name, begin, words: [...head.subarray(begin, end)], leaves: members, value: graded.length ? average(graded) : NaN, advantage: NaN,
      children: single ? [] : [...branches.values()].map((one, i) => build(one, end, `${name}${name ? "." : ""}${i}`)),
    };
  };
  return rows.length ? build(rows, 0, "") : null;
}

export class TreeView {
  constructor(model) {
    this.model = model;
    this.element = el("div", { class: "tree-view" });
    this.pair = [];
    listen((names) => { if (state.view === "tree" && (names.has("row") || names.has("view"))) this.draw(); });
  }

  draw() {
    const { model } = this;
    if (state.row == null) return this.element.replaceChildren(el("p", { class: "empty" }, "Choose a response in the reader, or a question in the matrix: its tree appears here."));
    const question = model.question(state.row), root = treeOf(model, state.row);
    if (this.question !== `${state.row}`) { this.pair = []; this.question = `${state.row}`; }
    this.compare = el("section", { class: "panel compare", "aria-live": "polite" });
    this.element.replaceChildren(
      el("header", { class: "response-head" }, el("h2", {}, excerpt(model.questions.id[question], 80), el("small", {}, ` ${model.table(state.row).label}, ${root.leaves.length} responses, V(prompt) ${figure(root.value)}`)),
        el("p", { class: "note" }, model.isTree(state.row) ? "The sampled tree: the width of a node is its number of responses, its color the value V at its end." : "The tree of shared prefixes: the responses of this group were sampled independently, and branch where they differ.", " Choose two siblings to see their difference.")),
      el("section", { class: "panel" }, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "icicle" }, this.icicle(root)), el("div", { class: "key" }, el("span", {}, "V = 0"), el("i", { class: "ramp value" }), el("span", {}, "V = 1"))),
      this.compare, this.paths(root));
    this.drawPair();
    return undefined;
  }

  icicle(root) {
    const room = Math.max(320, Math.min(1460, innerWidth - 80)), width = Math.max(room, Math.min(12000, root.leaves.length * ICICLE.leaf)), unit = width / root.leaves.length;
    let depth = 0;
    const boxes = [];
    const place = (node, level, left, parent) => {
      depth = Math.max(depth, level);
      boxes.push([node, level, left, parent]);
      let at = left;
      for (const child of node.children) { place(child, level + 1, at, node); at += child.leaves.length; }
    };
    place(root, 0, 0, null);
    const svg = el("svg", { viewBox: `0 0 ${width} ${(depth + 1) * ICICLE.row}`, width, height: (depth + 1) * ICICLE.row, class: "icicle", role: "group", "aria-label": `tree of ${root.leaves.length} responses` });
    for (const [node, level, left, parent] of boxes) svg.append(this.box(node, level, left * unit, node.leaves.length * unit, parent));
    return svg;
  }

  box(node, level, x, width, parent) {
    const text = node.words.map((word) => this.model.words[word]).join(""), chosen = this.pair.some(([one]) => one.row === node.row && one.begin === node.begin);
    const onPath = node.leaves.includes(state.row);
    const open = () => this.choose(node, parent);
    const group = el("g", { class: `node${onPath ? " on-path" : ""}${chosen ? " chosen" : ""}`, tabindex: "0", role: "button", "data-node": node.name, "aria-label": `node ${node.name}: V ${figure(node.value)}, ${node.leaves.length} responses, ${excerpt(text, 60)}`, onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } },
      el("rect", { x: x + 0.5, y: level * ICICLE.row + 0.5, width: Math.max(1, width - 1), height: ICICLE.row - 1, style: { fill: valueColor(node.value) } }),
      el("title", {}, `${node.name} V ${figure(node.value)}\n${excerpt(text, 300)}`));
    const letters = Math.floor((width - 10) / 6.6);
    if (letters > 3) group.append(el("text", { x: x + 6, y: level * ICICLE.row + 18, class: "node-value" }, excerpt(`V ${figure(node.value, 2)}${Number.isNaN(node.advantage ?? NaN) ? "" : `  A ${signed(node.advantage, 2)}`}`, letters)), el("text", { x: x + 6, y: level * ICICLE.row + 35, class: "node-text" }, excerpt(text || "(prompt)", letters)));
    return group;
  }

  choose(node, parent) {
    const sibling = this.pair.find(([, other]) => other === parent || (other && parent && other.begin === parent.begin && other.row === parent.row));
    this.pair = sibling && this.pair.length === 1 && sibling[0] !== node ? [sibling, [node, parent]] : [[node, parent]];
    if (!node.leaves.includes(state.row)) { this.question = `${node.leaves[0]}`; change({ row: node.leaves[0], token: null }); }
    else this.draw();
  }

  drawPair() {
    if (!this.pair.length) return this.compare.replaceChildren(el("h3", {}, "Two siblings"), el("p", { class: "note" }, "None chosen yet."));
    const [first, second] = this.pair.map(([node]) => node), { model } = this;
    const same = second ? commonPrefix(first.words, second.words) : 0;
    const column = (node) => el("div", { class: "sibling" }, el("h4", {}, `node ${node.name || "root"}`, el("small", {}, `V ${figure(node.value)} · ${node.leaves.length} responses · from token ${node.begin}`)),
      el("pre", {}, el("bdi", {}, second ? el("span", { class: "same" }, visible(node.words.slice(0, same).map((word) => model.words[word]).join(""))) : null, el("span", { class: second ? "differs" : "" }, visible(node.words.slice(same).map((word) => model.words[word]).join("")) || "∅"))));
    return this.compare.replaceChildren(el("h3", {}, "Two siblings", second ? el("small", {}, `difference of V: ${signed(second.value - first.value)}; the first ${same} tokens agree`) : el("small", {}, "choose a sibling of this node for the difference")),
      el("div", { class: "siblings" }, column(first), second ? column(second) : null));
  }

  paths(root) {
    const { model } = this;
    return el("section", { class: "panel paths" }, el("h3", {}, "Paths"), el("ul", {}, root.leaves.slice(0, 300).map((row) => el("li", {}, el("button", { class: row === state.row ? "path current" : "path", onclick: () => change({ row, token: null, view: "reader" }) },
      rewardBadge(model.reward(row)), el("span", { class: "item-name" }, excerpt(model.name(row).split("/").pop(), 30)), el("bdi", { class: "item-excerpt" }, excerpt(model.fullText(row), 220)))))));
  }
}
