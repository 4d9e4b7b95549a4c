// Elements, visible text and lists of many rows. Text of a model enters the page through textContent alone.

const SVG_NAMES = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title", "polyline", "polygon"]);
const CONTROL_PICTURES = { 9: "⇥", 10: "⏎", 13: "␍", 27: "␛", 127: "␡" };
// Characters that do not print or that reorder the text around them.
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/gu;

/** Create an element: attributes (`onclick`, `class`, aria-…), then children (elements or text). */
export function el(name, attributes = {}, ...children) {
  const element = SVG_NAMES.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [property, one] of Object.entries(value)) element.style.setProperty(property, one);
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) if (child != null && child !== false) element.append(child);
  return element;
}

/** Return text in which every character can be seen and none has an effect: ␛ for an escape, \u202e for a mark. */
export function visible(text) {
  return String(text ?? "").replace(INVISIBLE, (character) => {
    const code = character.codePointAt(0);
    return CONTROL_PICTURES[code] ?? (code < 32 ? String.fromCodePoint(0x2400 + code) : `\\u${code.toString(16).padStart(4, "0")}`);
  });
}

/** Return visible text on one line, cut after some characters. */
export function excerpt(text, size = 160) {
  const shown = visible(text);
  return shown.length > size ? `${shown.slice(0, size)}…` : shown;
}

/** Return a number in few characters: 4 significant digits, thousands separated. */
export function figure(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "–";
  if (Math.abs(value) >= 10000) return Math.round(value).toLocaleString("en-US");
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return Number(value.toPrecision(digits + (Math.abs(value) >= 100 ? 1 : 0))).toLocaleString("en-US", { maximumFractionDigits: 4 });
}

/** Return a number with its sign: +0.25, −0.5. */
export function signed(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "–";
  const shown = Math.abs(value).toFixed(digits);
  return Number(shown) === 0 ? (0).toFixed(digits) : `${value < 0 ? "−" : "+"}${shown}`;
}

/** A list of any number of rows, of which only those in view exist. `draw(index)` returns the element of a row. */
export class VirtualList {
  constructor(height, draw, label) {
    this.height = height;
    this.draw = draw;
    this.count = 0;
    this.drawn = new Map();
    this.spacer = el("div", { class: "spacer", role: "presentation" });
    this.element = el("div", { class: "virtual", role: "listbox", tabindex: "0", "aria-label": label, onscroll: () => this.refresh() }, this.spacer);
    new ResizeObserver(() => this.refresh()).observe(this.element);
  }

  show(count) {
    this.count = count;
    this.spacer.style.height = `${count * this.height}px`;
    this.clear();
    this.refresh();
  }

  clear() {
    for (const row of this.drawn.values()) row.remove();
    this.drawn.clear();
  }

  refresh() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / this.height) - 4);
    const last = Math.min(this.count, Math.ceil((this.element.scrollTop + (this.element.clientHeight || 600)) / this.height) + 4);
    for (const [index, row] of this.drawn) if (index < first || index >= last) { row.remove(); this.drawn.delete(index); }
    for (let index = first; index < last; index++) {
      if (this.drawn.has(index)) continue;
      const row = this.draw(index);
      row.style.top = `${index * this.height}px`;
      row.setAttribute("aria-posinset", index + 1);
      row.setAttribute("aria-setsize", this.count);
      this.spacer.append(row);
      this.drawn.set(index, row);
    }
  }

  reveal(index) {
    const top = index * this.height, box = this.element;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + this.height > box.scrollTop + box.clientHeight) box.scrollTop = top + this.height - box.clientHeight;
    this.refresh();
  }
}
