// The color of a token or unit of text: diverging for advantages, sequential for probabilities and values.
import { quantile } from "./maths.js";

export const COLOR_NAMES = { advantage: "advantage", probability: "probability", value: "value", ratio: "ratio", none: "none" };

/** CSS color for a share from −1 to 1: orange below 0, blue above, transparent at 0. */
export function diverging(share) {
  if (!Number.isFinite(share) || Math.abs(share) < 0.004) return "transparent";
  const percent = Math.round(12 + 58 * Math.min(1, Math.abs(share)));
  return `color-mix(in srgb, var(${share < 0 ? "--negative" : "--positive"}) ${percent}%, transparent)`;
}

/** CSS color for a share from 0 to 1: none to full ink. */
export function sequential(share) {
  if (!Number.isFinite(share)) return "transparent";
  return `color-mix(in srgb, var(--scale) ${Math.round(75 * Math.min(1, Math.max(0, share)))}%, transparent)`;
}

/** CSS color for V from 0 to 1: orange through gray to blue. */
export function valueColor(value) {
  if (!Number.isFinite(value)) return "var(--hatch)";
  const share = Math.min(1, Math.max(0, value));
  const end = share < 0.5 ? "--negative" : "--positive";
  return `color-mix(in srgb, var(${end}) ${Math.round(25 + 130 * Math.abs(share - 0.5))}%, var(--middle))`;
}

/** |Advantage| that has the full color: nearly all of the shown ones are below it. */
export function advantageScale(segments) {
  const sizes = segments.map((one) => Math.abs(one.advantage)).filter((one) => one > 1e-8);
  return sizes.length ? Math.max(quantile(sizes, 0.95), 1e-6) : 1;
}

/** |Log-ratio| that has the full color: nearly all of those that the trainer saw in a response are below it. */
export function ratioScale(seen) {
  const sizes = [...seen.values()].map((steps) => Math.abs(Math.log(steps.at(-1).ratio))).filter((one) => one > 1e-7);
  return sizes.length ? Math.max(quantile(sizes, 0.95), 1e-6) : 1;
}

/** Background of a unit of text, from its segments, probabilities and ratios. */
export function unitColor(kind, { advantage, probability, value, ratio }, scale) {
  if (kind === "ratio") return diverging(Math.log(ratio) / scale);
  if (kind === "advantage") return diverging(advantage / scale);
  if (kind === "probability") return sequential(1 - probability);
  if (kind === "value") return Number.isFinite(value) ? `color-mix(in srgb, ${valueColor(value)} 55%, transparent)` : "transparent";
  return "transparent";
}
