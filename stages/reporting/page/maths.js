// Partitions, intervals and sums: the arithmetic of stages/maths, repeated in float64 on the numbers in the file.

const Z95 = 1.959963984540054; // Φ⁻¹(0.975)

/** Wilson interval [low, high] of a mean of n outcomes between 0 and 1 (stages/maths/intervals.py). */
export function wilson(mean, n, z = Z95) {
  if (!n) return [0, 1];
  const center = (mean + z ** 2 / (2 * n)) / (1 + z ** 2 / n);
  const half = (z * Math.sqrt(Math.max(mean * (1 - mean), 0) / n + z ** 2 / (4 * n ** 2))) / (1 + z ** 2 / n);
  return [Math.max(center - half, 0), Math.min(center + half, 1)];
}

export function average(values) {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}

/** Population standard deviation. */
export function deviation(values) {
  const middle = average(values);
  let sum = 0;
  for (const value of values) sum += (value - middle) ** 2;
  return Math.sqrt(sum / values.length);
}

/** Flags of the tokens whose probability is below ρ, strictly: log p < log ρ in float64. */
export function cutpointFlags(logprobs, rho) {
  const limit = Math.log(rho);
  return Uint8Array.from(logprobs, (value) => (value < limit ? 1 : 0));
}

/** Starts of segments, 0 first (stages/maths/partition.py). */
export function partitionStarts(partition, size, flags, options) {
  const starts = new Set([0]);
  const every = (step) => { for (let at = step; at < size; at += step) starts.add(at); };
  if (partition === "cutpoints") {
    let seen = 0;
    flags.forEach((flag, at) => { if (flag && seen++ % options.interval === 0) starts.add(at); });
  } else if (partition === "fixed") every(options.segmentTokens);
  else if (partition === "token") every(1);
  else if (partition === "count") {
    const quotient = Math.floor(size / options.numSegments), remainder = size % options.numSegments;
    for (let i = 1; i < Math.min(options.numSegments, size); i++) starts.add(quotient * i + Math.min(i, remainder));
  }
  return [...starts].sort((a, b) => a - b);
}

/** Half-open ranges between starts. */
export function rangesOf(starts, size) {
  return starts.map((start, i) => ({ start, end: i + 1 < starts.length ? starts[i + 1] : size }));
}

/** Value below which a share of the numbers lies. */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
}

/** Number of leading words that two responses have in common. */
export function commonPrefix(a, b) {
  const size = Math.min(a.length, b.length);
  let at = 0;
  while (at < size && a[at] === b[at]) at++;
  return at;
}
