// The routing that all tiles of a picture share. Mirrors runtimes/restore/routing.py.

/** Element-wise mean of equally long arrays, summed in double precision. */
export function mean(parts) {
  return Float32Array.from(parts[0], (_, i) => parts.reduce((total, part) => total + part[i], 0) / parts.length);
}

/** The gates of all levels from the averaged expert probabilities. */
export function gates(probability, { experts, top_k }) {
  const result = new Float32Array(probability.length);
  let at = 0;
  for (const count of experts) {
    result.set(topK(probability.subarray(at, at + count), top_k), at);
    at += count;
  }
  return result;
}

/**
 * The k largest, ties to the lowest index, zero elsewhere; k > 1 divides by the sum of the chosen, and where that is 0
 * the gate is 0. Throws Error for NaN, infinity and numbers below 0.
 */
export function topK(probability, k) {
  if (!probability.every((value) => Number.isFinite(value) && value >= 0)) {
    throw new Error("the router returned a probability that is NaN, infinite or negative; its file is damaged");
  }
  const order = [...probability.keys()].sort((a, b) => probability[b] - probability[a] || a - b).slice(0, k);
  const total = order.reduce((all, index) => all + probability[index], 0);
  const gate = new Float32Array(probability.length);
  for (const index of order) gate[index] = k === 1 || total === 0 ? probability[index] : probability[index] / total;
  return gate;
}
