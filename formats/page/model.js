/* The network in plain loops: what tiny_decoder.py computes, for one text, without a library.

   Shapes: T time (tokens), C embed_dim, nh num_heads, hs = C / nh, V vocab_size. A matrix (rows, columns) is one
   Float32Array, row after row. Names of weights are those of the checkpoint.
*/
"use strict";

/** out (T, rows) = x (T, columns) · matrixᵀ + bias, with matrix (rows, columns), as PyTorch's nn.Linear keeps it. */
function linear(out, x, matrix, bias, T, rows, columns) {
  let t = 0;
  for (; t + 4 <= T; t += 4) fourTokens(out, x, matrix, t, rows, columns);
  for (; t < T; t++) dots(out, t * rows, x, t * columns, matrix, 0, columns, rows, columns);
  if (bias) for (let i = 0; i < T * rows; i++) out[i] += bias[i % rows];
}

/** Products of one vector with `count` others: out[outStart + n] = Σ_i x[xStart + i] · others[first + n · step + i].
 *
 * Four at once: a number of x that is loaded is used four times.
 */
function dots(out, outStart, x, xStart, others, first, step, count, length) {
  let n = 0;
  for (; n + 4 <= count; n += 4) {
    const r0 = first + n * step, r1 = r0 + step, r2 = r1 + step, r3 = r2 + step;
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (let i = 0; i < length; i++) {
      const value = x[xStart + i];
      s0 += value * others[r0 + i];
      s1 += value * others[r1 + i];
      s2 += value * others[r2 + i];
      s3 += value * others[r3 + i];
    }
    out[outStart + n] = s0;
    out[outStart + n + 1] = s1;
    out[outStart + n + 2] = s2;
    out[outStart + n + 3] = s3;
  }
  for (; n < count; n++) {
    let sum = 0;
    for (let i = 0; i < length; i++) sum += x[xStart + i] * others[first + n * step + i];
    out[outStart + n] = sum;
  }
}

/** Rows t to t + 3 of `linear`, without bias: four tokens and two rows of the matrix at once. */
function fourTokens(out, x, matrix, t, rows, columns) {
  const x0 = t * columns, x1 = x0 + columns, x2 = x1 + columns, x3 = x2 + columns;
  const o0 = t * rows, o1 = o0 + rows, o2 = o1 + rows, o3 = o2 + rows;
  for (let row = 0; row < rows; row += 2) {
    const next = row + 1 < rows ? row + 1 : row; // the last one twice, if their number is odd
    const r = row * columns, q = next * columns;
    let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    for (let i = 0; i < columns; i++) {
      const a = matrix[r + i], b = matrix[q + i];
      const v0 = x[x0 + i], v1 = x[x1 + i], v2 = x[x2 + i], v3 = x[x3 + i];
      a0 += a * v0; a1 += a * v1; a2 += a * v2; a3 += a * v3;
      b0 += b * v0; b1 += b * v1; b2 += b * v2; b3 += b * v3;
    }
    out[o0 + row] = a0; out[o1 + row] = a1; out[o2 + row] = a2; out[o3 + row] = a3;
    out[o0 + next] = b0; out[o1 + next] = b1; out[o2 + next] = b2; out[o3 + next] = b3;
  }
}

/** Add vectors, each times its weight: out[outStart + i] += Σ_n weights[n] · vectors[first + n · step + i]. */
function addWeighted(out, outStart, weights, vectors, first, step, count, length) {
  let n = 0;
  for (; n + 4 <= count; n += 4) {
    const r0 = first + n * step, r1 = r0 + step, r2 = r1 + step, r3 = r2 + step;
    const w0 = weights[n], w1 = weights[n + 1], w2 = weights[n + 2], w3 = weights[n + 3];
    for (let i = 0; i < length; i++) {
      out[outStart + i] += w0 * vectors[r0 + i] + w1 * vectors[r1 + i] + w2 * vectors[r2 + i] + w3 * vectors[r3 + i];
    }
  }
  for (; n < count; n++) {
    for (let i = 0; i < length; i++) out[outStart + i] += weights[n] * vectors[first + n * step + i];
  }
}

/** out (T, C): each row of x (T, C) with mean 0 and variance 1, then scaled and shifted. */
function layerNorm(out, x, weight, bias, T, C) {
  for (let start = 0; start < T * C; start += C) {
    let mean = 0, variance = 0;
    for (let i = 0; i < C; i++) mean += x[start + i];
    mean /= C;
    for (let i = 0; i < C; i++) variance += (x[start + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / C + 1e-5);
    for (let i = 0; i < C; i++) out[start + i] = (x[start + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
}

/** The error function, to 1.2e-7: Press et al., Numerical Recipes, section 6.2 (erfc by a Chebyshev polynomial). */
function erf(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const polynomial = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (
    0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
  const complement = t * Math.exp(-x * x + polynomial);
  return x >= 0 ? 1 - complement : complement - 1;
}

/** Apply GELU to the first `count` numbers of x, in place; `kind` is "exact" or "tanh", GPT-2's approximation. */
function gelu(x, count, kind) {
  for (let i = 0; i < count; i++) {
    const value = x[i];
    const inner = kind === "exact"
      ? erf(value * Math.SQRT1_2)
      : Math.tanh(Math.sqrt(2 / Math.PI) * (value + 0.044715 * value ** 3));
    x[i] = 0.5 * value * (1 + inner);
  }
}

/** The keys and values of every layer, (maxSeq, C) each, of which the first `length` rows are filled. */
class KVCache {
  constructor(config) {
    const { num_layers: layers, max_seq: maxSeq, embed_dim: C } = config;
    this.keys = Array.from({ length: layers }, () => new Float32Array(maxSeq * C));
    this.values = Array.from({ length: layers }, () => new Float32Array(maxSeq * C));
    this.length = 0;
  }
}

/** What `forward` notes on its way, if it is asked to, for the panel "Look inside".
 *
 * attention[layer]: (nh, T, T), the weights that each token (row) gives to each token (column).
 * residual[layer]: (T, C), the stream after the embeddings (0) and after each block (1 … num_layers).
 */
class Trace {
  constructor() {
    this.attention = [];
    this.residual = [];
  }
}

class TinyGPT {
  /** config: the fields of TinyGPTConfig (vocab_size, max_seq, …). weights: name -> Float32Array; without "head.weight"
   * the head is the token embedding ("tied"). */
  constructor(config, weights) {
    this.config = config;
    this.weights = weights;
    this.head = weights["head.weight"] || weights["token_embedding.weight"];
    this.layers = Array.from({ length: config.num_layers }, (_, layer) => this.layerWeights(layer));
    const size = config.max_seq * config.embed_dim;
    this.normed = new Float32Array(size);
    this.qkv = new Float32Array(3 * size);
    this.mixed = new Float32Array(size);
    this.hidden = new Float32Array(4 * size);
    this.branch = new Float32Array(size);
    this.scores = new Float32Array(config.max_seq);
  }

  /** The weights of one block by short names. */
  layerWeights(layer) {
    const get = (name) => this.weights[`blocks.${layer}.${name}`];
    return {
      norm1: get("attention_norm.weight"), norm1Bias: get("attention_norm.bias"),
      qkv: get("attention.in_proj_weight"), qkvBias: get("attention.in_proj_bias"),
      out: get("attention.out_proj.weight"), outBias: get("attention.out_proj.bias"),
      norm2: get("mlp_norm.weight"), norm2Bias: get("mlp_norm.bias"),
      up: get("mlp.up.weight"), upBias: get("mlp.up.bias"),
      down: get("mlp.down.weight"), downBias: get("mlp.down.bias"),
    };
  }

  /** Logits (T, V) after each of the ids (T), or (1, V) after the last one with lastOnly.
   *
   * The ids come after the tokens in the cache and are added to it. trace: a Trace, with an empty cache only.
   * off: which heads give nothing, as a Set of layer * numHeads + head.
   */
  forward(ids, cache, { lastOnly = false, trace = null, off = null } = {}) {
    const { embed_dim: C, max_seq: maxSeq } = this.config, T = ids.length, start = cache.length;
    if (T === 0 || start + T > maxSeq) throw new Error(`${start + T} tokens do not fit into the window of ${maxSeq}`);
    const x = this.embed(ids, start);
    if (trace) trace.residual.push(x.slice());
    for (let layer = 0; layer < this.layers.length; layer++) {
      this.attend(x, T, layer, cache, trace, off);
      this.feedForward(x, T, this.layers[layer]);
      if (trace) trace.residual.push(x.slice());
    }
    cache.length += T;
    return lastOnly ? this.predict(x.subarray((T - 1) * C), 1) : this.predict(x, T);
  }

  /** Token plus position embeddings (T, C) of ids that stand at start, start + 1, … */
  embed(ids, start) {
    const { embed_dim: C, vocab_size: vocabSize } = this.config;
    const tokens = this.weights["token_embedding.weight"], positions = this.weights["position_embedding.weight"];
    const x = new Float32Array(ids.length * C);
    ids.forEach((id, t) => {
      if (!(Number.isInteger(id) && id >= 0 && id < vocabSize)) throw new Error(`${id} is not a token id`);
      for (let i = 0; i < C; i++) x[t * C + i] = tokens[id * C + i] + positions[(start + t) * C + i];
    });
    return x;
  }

  /** Add one layer's attention to x (T, C). */
  attend(x, T, layer, cache, trace, off) {
    const { embed_dim: C, num_heads: numHeads } = this.config, w = this.layers[layer], start = cache.length;
    const keys = cache.keys[layer], values = cache.values[layer];
    layerNorm(this.normed, x, w.norm1, w.norm1Bias, T, C);
    linear(this.qkv, this.normed, w.qkv, w.qkvBias, T, 3 * C, C);
    for (let t = 0; t < T; t++) {
      keys.set(this.qkv.subarray((3 * t + 1) * C, (3 * t + 2) * C), (start + t) * C);
      values.set(this.qkv.subarray((3 * t + 2) * C, (3 * t + 3) * C), (start + t) * C);
    }
    const maps = trace && new Float32Array(numHeads * T * T);
    for (let head = 0; head < numHeads; head++) {
      const silent = off !== null && off.has(layer * numHeads + head);
      for (let t = 0; t < T; t++) {
        this.attendHead(t, start + t + 1, head, keys, values, silent);
        if (trace) maps.set(this.scores.subarray(0, t + 1), (head * T + t) * T);
      }
    }
    if (trace) trace.attention.push(maps);
    linear(this.branch, this.mixed, w.out, w.outBias, T, C, C);
    for (let i = 0; i < T * C; i++) x[i] += this.branch[i];
  }

  /** One head of token t, which sees the first `seen` keys: that is the causal mask. Weights go to this.scores. */
  attendHead(t, seen, head, keys, values, silent) {
    const { embed_dim: C, num_heads: numHeads } = this.config, hs = C / numHeads, from = head * hs;
    const { scores, mixed } = this, out = t * C + from;
    dots(scores, 0, this.qkv, 3 * t * C + from, keys, from, C, seen, hs);
    let largest = -Infinity, total = 0;
    for (let j = 0; j < seen; j++) largest = Math.max(largest, scores[j] /= Math.sqrt(hs));
    for (let j = 0; j < seen; j++) total += scores[j] = Math.exp(scores[j] - largest);
    for (let j = 0; j < seen; j++) scores[j] /= total;
    mixed.fill(0, out, out + hs);
    if (!silent) addWeighted(mixed, out, scores, values, from, C, seen, hs);
  }

  /** Add one layer's two-layer perceptron to x (T, C). */
  feedForward(x, T, w) {
    const C = this.config.embed_dim;
    layerNorm(this.normed, x, w.norm2, w.norm2Bias, T, C);
    linear(this.hidden, this.normed, w.up, w.upBias, T, 4 * C, C);
    gelu(this.hidden, T * 4 * C, this.config.gelu);
    linear(this.branch, this.hidden, w.down, w.downBias, T, C, 4 * C);
    for (let i = 0; i < T * C; i++) x[i] += this.branch[i];
  }

  /** Logits (T, V) that the head reads from the residual stream x (T, C) of any layer: after the last one the
   * model's own, before that the "logit lens" (nostalgebraist 2020). */
  predict(x, T) {
    const { embed_dim: C, vocab_size: vocabSize } = this.config, logits = new Float32Array(T * vocabSize);
    layerNorm(this.normed, x, this.weights["final_norm.weight"], this.weights["final_norm.bias"], T, C);
    linear(logits, this.normed, this.head, null, T, vocabSize, C);
    return logits;
  }
}

/** A model reading a text that grows by one token at a time: SlidingWindow of sampler.py, for one row.
 *
 * A full window drops `stride` tokens at its left end, and is read anew: all its positions change.
 */
class SlidingWindow {
  constructor(model, ids, stride) {
    const { max_seq: maxSeq } = model.config;
    this.model = model;
    this.maxSeq = maxSeq;
    this.stride = stride ?? Math.max(1, Math.floor(maxSeq / 2));
    if (!(Number.isInteger(this.stride) && this.stride >= 1 && this.stride <= maxSeq)) {
      throw new Error(`stride must be a whole number from 1 to ${maxSeq}, not ${stride}`);
    }
    this.ids = [...ids];
    this.start = Math.max(0, ids.length - maxSeq); // where the window begins
    this.cache = new KVCache(model.config);
  }

  /** Logits (V) after the last token. */
  nextLogits() {
    if (this.ids.length - this.start > this.maxSeq) {
      this.start = this.ids.length - this.maxSeq - 1 + this.stride;
      this.cache.length = 0;
    }
    const unread = this.ids.slice(this.start + this.cache.length);
    return this.model.forward(unread, this.cache, { lastOnly: true });
  }
}
