// Access to the data by row: tables, rows (responses or nodes of trees), paths, tokens and recorded segments.

const FINISHES = ["stop", "length", "segment", "other"];

/** Index of the first value of a rising array that is at least a bound. */
function firstAtLeast(values, bound) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < bound) low = middle + 1;
    else high = middle;
  }
  return low;
}

export class Model {
  constructor(data) {
    Object.assign(this, data);
    const a = data.arrays;
    this.count = a["row.parent"].length;
    this.children = new Map();
    for (let row = 0; row < this.count; row++) {
      const parent = a["row.parent"][row];
      if (parent >= 0) this.children.set(parent, [...(this.children.get(parent) ?? []), row]);
    }
    this.leaves = [];
    for (let row = 0; row < this.count; row++) if (!this.children.has(row)) this.leaves.push(row);
    this.groups = new Map(); // "table:question" → leaves
    for (const row of this.leaves) {
      const key = this.groupKey(row);
      if (this.groups.has(key)) this.groups.get(key).push(row);
      else this.groups.set(key, [row]);
    }
    this.segmentFirst = new Int32Array(this.count + 1);
    for (const row of a["segment.row"]) this.segmentFirst[row + 1]++;
    for (let row = 0; row < this.count; row++) this.segmentFirst[row + 1] += this.segmentFirst[row];
    this.stateAt = new Map(); // "row:start" → its entry among the states with kept rollouts
    a["state.row"].forEach((row, i) => this.stateAt.set(`${row}:${a["state.start"][i]}`, i));
    this.rowByName = new Map();
    this.cache = new Map();
  }

  table(row) { return this.tables[this.arrays["row.table"][row]]; }
  question(row) { return this.arrays["row.question"][row]; }
  reward(row) { return this.arrays["row.reward"][row]; }
  groupKey(row) { return `${this.arrays["row.table"][row]}:${this.arrays["row.question"][row]}`; }
  group(row) { return this.groups.get(this.groupKey(row)); }
  name(row) { return this.rows.name[row]; }
  isTree(row) { return this.arrays["row.parent"][row] >= 0 || this.children.has(row); }
  text(number) { return number < 0 ? null : this.strings[number]; }
  answer(row) { return this.text(this.arrays["row.answer"][row]); }
  reason(row) { return this.text(this.arrays["row.verdict_reason"][row]); }
  reference(row) { return this.questions.reference[this.question(row)]; }
  finish(row) { return FINISHES[this.arrays["row.finish"][row]]; }

  /** Rows from the first node to this one; a whole response is a path of one row. */
  path(row) {
    const rows = [row];
    while (this.arrays["row.parent"][rows[0]] >= 0) rows.unshift(this.arrays["row.parent"][rows[0]]);
    return rows;
  }

  /** Number of tokens from the prompt to the end of a row. */
  length(row) {
    let total = 0;
    for (const node of this.path(row)) total += this.arrays["row.first"][node + 1] - this.arrays["row.first"][node];
    return total;
  }

  /** Word numbers, log-probabilities and recorded cutpoints of the whole response that ends in a row. */
  tokens(row) {
    const found = this.cache.get(row);
    if (found) return found;
    const a = this.arrays, path = this.path(row);
    const parts = path.map((node) => [a["row.first"][node], a["row.first"][node + 1]]);
    const size = parts.reduce((sum, [begin, end]) => sum + end - begin, 0);
    const tokens = { size, word: new Uint32Array(size), logprob: new Float32Array(size), cut: new Uint8Array(size), before: [] };
    let at = 0;
    for (const [begin, end] of parts) {
      tokens.before.push(at);
      tokens.word.set(a["token.word"].subarray(begin, end), at);
      tokens.logprob.set(a["token.logprob"].subarray(begin, end), at);
      tokens.cut.set(a["token.cut"].subarray(begin, end), at);
      at += end - begin;
    }
    if (this.cache.size > 400) this.cache.clear();
    this.cache.set(row, tokens);
    return tokens;
  }

  /** What the trainer saw of each token of the whole response that ends in a row: a list of steps by token. */
  seen(row) {
    const a = this.arrays, { before } = this.tokens(row), found = new Map();
    this.path(row).forEach((node, i) => {
      const [begin, end] = [a["row.first"][node], a["row.first"][node + 1]];
      for (let k = firstAtLeast(a["seen.token"], begin); k < a["seen.token"].length && a["seen.token"][k] < end; k++) {
        const at = a["seen.token"][k] - begin + before[i], get = (name) => a[`seen.${name}`][k];
        const step = { step: get("step"), old: get("old_logprob"), now: get("new_logprob"), entropy: get("entropy"), ratio: get("ratio"), clipped: get("clipped") === 1, advantage: get("advantage") };
        if (found.has(at)) found.get(at).push(step);
        else found.set(at, [step]);
      }
    });
    return found;
  }

  /** Kept rollouts from the state of a response before a token: text, reward, end and length of each. */
  rolloutsAt(row, start) {
    const a = this.arrays, i = this.stateAt.get(`${row}:${start}`);
    if (i === undefined) return [];
    return Array.from({ length: a["state.count"][i] }, (_, k) => {
      const one = a["state.first"][i] + k;
      return { text: this.text(a["rollout.text"][one]), reward: a["rollout.reward"][one], finish: FINISHES[a["rollout.finish"][one]], tokens: a["rollout.tokens"][one] };
    });
  }

  /** Text of the whole response that ends in a row, from a token on. */
  fullText(row, from = 0) {
    const { word } = this.tokens(row);
    let text = "";
    for (const number of word.subarray(from)) text += this.words[number];
    return text;
  }

  /** Recorded segments of one row, in order; offsets count within the row. */
  segmentsOf(row) {
    const segments = [];
    for (let i = this.segmentFirst[row]; i < this.segmentFirst[row + 1]; i++) segments.push(this.segment(i));
    return segments;
  }

  /** One recorded segment; `written` is false where the estimator left it out. */
  segment(i) {
    const a = this.arrays, get = (name) => a[`segment.${name}`][i];
    const rewards = a["segment.rewards"].subarray(get("reward_first"), a["segment.reward_first"][i + 1]);
    return {
      number: i, row: get("row"), start: get("start"), end: get("end"), valueStart: get("value_start"), valueEnd: get("value_end"),
      advantage: get("advantage"), std: get("value_std"), rollouts: get("num_rollouts"), rewards, written: !Number.isNaN(get("advantage")),
    };
  }

  /** Recorded segments along the whole response that ends in a row; offsets count from the prompt. */
  recorded(row) {
    const { before } = this.tokens(row);
    return this.path(row).flatMap((node, i) =>
      this.segmentsOf(node).map((one) => ({ ...one, start: one.start + before[i], end: one.end + before[i], node })));
  }

  /** Row of a name within the rows of a question; undefined if there is none. */
  find(questionId, name, table) {
    const question = this.questions.id.indexOf(questionId);
    for (let row = 0; row < this.count; row++) {
      if (this.question(row) === question && this.name(row) === name && (table === undefined || this.arrays["row.table"][row] === table)) return row;
    }
    return undefined;
  }
}
