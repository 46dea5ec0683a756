/* From logits to tokens: the filters and the random numbers of sampler.py, in the same order and precision. */

/** How the next token is chosen; these values switch everything off. The filters below make logits (V) of logits (V),
 * in float32; -Infinity is "rejected". */
const NO_FILTERS = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 };

/** Probabilities of logits, in double precision. */
function softmax(logits) {
  const largest = logits[argmax(logits)], shares = Float64Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = shares.reduce((sum, share) => sum + share);
  return shares.map((share) => share / total);
}

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** The indices of all logits, the largest first; of equal ones the lower index first. */
function descending(logits) {
  return Uint32Array.from(logits.keys()).sort((a, b) => (logits[b] - logits[a]) || a - b);
}

/** Make the tokens of the Set `seen` less likely: CTRL (Keskar et al. 2019), section 4.1. */
function penalizeRepetition(logits, seen, penalty) {
  const by = Math.fround(penalty);
  return logits.map((logit, id) => (!seen.has(id) ? logit : logit > 0 ? logit / by : logit * by));
}

/** Scale the distances to the largest logit by 1 / temperature; at 0 only the first of the largest stays. */
function applyTemperature(logits, temperature) {
  const best = argmax(logits);
  if (temperature < 1e-6) return logits.map((_, id) => (id === best ? 0 : -Infinity));
  const largest = logits[best], by = Math.fround(temperature);
  return logits.map((logit) => Math.fround(logit - largest) / by);
}

function keepTopK(logits, k) {
  const rejected = new Set(descending(logits).subarray(k));
  return logits.map((logit, id) => (rejected.has(id) ? -Infinity : logit));
}

/** Keep the fewest tokens, from the likeliest down, whose probabilities sum to at least p, and always one. */
function keepTopP(logits, p) {
  const order = descending(logits), probabilities = softmax(Float32Array.from(order, (id) => logits[id]));
  const result = logits.slice();
  let cumulative = 0;
  order.forEach((id, rank) => {
    cumulative += probabilities[rank];
    if (rank > 0 && cumulative - probabilities[rank] >= p) result[id] = -Infinity;
  });
  return result;
}

/** Keep the tokens that are at least minP times as likely as the likeliest (Nguyen et al. 2024). */
function keepMinP(logits, minP) {
  const threshold = Math.fround(logits[argmax(logits)] + Math.fround(Math.log(minP)));
  return logits.map((logit) => (logit < threshold ? -Infinity : logit));
}

/** The logits (V) after each filter that is switched on, in order: [{name, logits}], first the logits themselves. */
function filterStages(logits, seen, sampling) {
  const { temperature, topK, topP, minP, repetitionPenalty } = { ...NO_FILTERS, ...sampling };
  const stages = [{ name: "model", logits }], last = () => stages[stages.length - 1].logits;
  const add = (name, filtered) => stages.push({ name, logits: filtered });
  if (repetitionPenalty !== 1) add("penalty", penalizeRepetition(last(), seen, repetitionPenalty));
  if (temperature !== 1) add("temperature", applyTemperature(last(), temperature));
  if (topK > 0 && topK < logits.length) add("top-k", keepTopK(last(), topK));
  if (topP < 1) add("top-p", keepTopP(last(), topP));
  if (minP > 0) add("min-p", keepMinP(last(), minP));
  return stages;
}

/** mt19937 (Matsumoto & Nishimura 1998), seeded and read as torch.Generator does: a seed gives the same numbers. */
class Mersenne {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
    this.index = 0;
  }

  next() {
    const s = this.state, i = this.index, after = (i + 1) % 624, joined = (s[i] & 0x80000000) | (s[after] & 0x7fffffff);
    s[i] = s[(i + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
    this.index = after;
    let y = s[i];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** A number from [0, 1), as torch.rand(…, dtype=float64): the last 53 of 64 bits. */
  uniform() {
    const high = this.next() & 0x1fffff, low = this.next();
    return (high * 2 ** 32 + low) * 2 ** -53;
  }
}

/** The token that `uniform`, from [0, 1), falls on when the probabilities (V) are laid side by side. */
function sampleToken(probabilities, uniform) {
  let total = 0, cumulative = 0, last = 0;
  for (const probability of probabilities) total += probability;
  for (let id = 0; id < probabilities.length; id++) {
    if (probabilities[id] === 0) continue;
    cumulative += probabilities[id];
    if (cumulative > uniform * total) return id;
    last = id;
  }
  return last; // uniform * total was rounded up to the total
}

const suppress = (logits, ids) => logits.map((logit, id) => (ids.includes(id) ? -Infinity : logit));

/** Yield a token, {id, surprise}, `maxNewTokens` times; the window grows by each. surprise: −ln p by the model itself,
 * in nats. suppressed: ids that are never sampled. */
function* generateTokens(window, maxNewTokens, seed, sampling, suppressed) {
  const random = new Mersenne(seed), seen = new Set(window.ids);
  for (let made = 0; made < maxNewTokens; made++) {
    const logits = window.nextLogits(), model = softmax(logits);
    const stages = filterStages(suppress(logits, suppressed), seen, sampling);
    const id = sampleToken(softmax(stages[stages.length - 1].logits), random.uniform());
    window.ids.push(id);
    seen.add(id);
    yield { id, surprise: -Math.log(model[id]) };
  }
}
