/* The network in plain loops: what tiny_decoder.py computes, for one text, without a library. Shapes: T time (tokens),
   C embed_dim, nh num_heads, hs = C / nh, V vocab_size. Names of weights are those of the checkpoint. */

/** The keys and values of every layer, (maxSeq, C) each, of which the first `length` rows are filled. */
class KVCache {
  constructor({ num_layers: layers, max_seq: maxSeq, embed_dim: C }) {
    const rows = () => Array.from({ length: layers }, () => new Float32Array(maxSeq * C));
    Object.assign(this, { keys: rows(), values: rows(), length: 0 });
  }
}

class TinyGPT {
  /** config: as TinyGPTConfig. weights: name -> Float32Array; without "head.weight" it is the embedding ("tied"). */
  constructor(config, weights) {
    Object.assign(this, { config, weights, head: weights["head.weight"] || weights["token_embedding.weight"] });
    this.layers = Array.from({ length: config.num_layers }, (_, layer) => Object.fromEntries( // by the names in a block
      Object.entries(weights).map(([name, values]) => [name.replace(`blocks.${layer}.`, ""), values])));
    const rows = (width) => new Float32Array(width * config.max_seq), C = config.embed_dim;
    Object.assign(this, { normed: rows(C), qkv: rows(3 * C), scores: rows(1), mixed: rows(C) });
    Object.assign(this, { hidden: rows(4 * C), branch: rows(C) });
  }

  /** Logits (T, V) after each of the ids (T), or (1, V) after the last one with lastOnly. The ids come after the tokens
   * in the cache and are added to it. off: which heads give nothing, as a Set of layer * numHeads + head. trace, with
   * an empty cache only, gets of each layer: qkv (T, 3C), queries, keys and values; attention (nh, T, T), the weights
   * that each token (row) gives to each; middle (T, C), the stream before the MLP; hidden (T, 4C), the MLP's neurons;
   * residual (T, C), the stream after the layer, and first after the embeddings. */
  forward(ids, cache, { lastOnly = false, trace = null, off = null } = {}) {
    const { embed_dim: C, max_seq: maxSeq } = this.config, T = ids.length, start = cache.length;
    if (T === 0 || start + T > maxSeq) throw new Error(`${start + T} tokens do not fit into the window of ${maxSeq}`);
    const x = this.embed(ids, start);
    if (trace) trace.residual.push(x.slice());
    for (let layer = 0; layer < this.layers.length; layer++) {
      this.attend(x, T, layer, cache, trace, off);
      if (trace) trace.middle.push(x.slice());
      this.feedForward(x, T, this.layers[layer], trace);
      if (trace) trace.residual.push(x.slice());
    }
    cache.length += T;
    return lastOnly ? this.predict(x.subarray((T - 1) * C), 1) : this.predict(x, T);
  }

  /** Token plus position embeddings (T, C) of ids that stand at start, start + 1, … */
  embed(ids, start) {
    const { embed_dim: C } = this.config, x = new Float32Array(ids.length * C);
    const tokens = this.weights["token_embedding.weight"], positions = this.weights["position_embedding.weight"];
    ids.forEach((id, t) => {
      for (let i = 0; i < C; i++) x[t * C + i] = tokens[id * C + i] + positions[(start + t) * C + i];
    });
    return x;
  }

  attend(x, T, layer, cache, trace, off) {
    const { embed_dim: C, num_heads: numHeads } = this.config, w = this.layers[layer], start = cache.length;
    const keys = cache.keys[layer], values = cache.values[layer];
    layerNorm(this.normed, x, w["attention_norm.weight"], w["attention_norm.bias"], T, C);
    linear(this.qkv, this.normed, w["attention.in_proj_weight"], w["attention.in_proj_bias"], T, 3 * C, C);
    for (let t = 0; t < T; t++) {
      keys.set(this.qkv.subarray((3 * t + 1) * C, (3 * t + 2) * C), (start + t) * C);
      values.set(this.qkv.subarray((3 * t + 2) * C, (3 * t + 3) * C), (start + t) * C);
    }
    const maps = trace && new Float32Array(numHeads * T * T);
    for (let head = 0; head < numHeads; head++) {
      const silent = off?.has(layer * numHeads + head);
      for (let t = 0; t < T; t++) {
        this.attendHead(t, start + t + 1, head, keys, values, silent);
        if (trace) maps.set(this.scores.subarray(0, t + 1), (head * T + t) * T);
      }
    }
    if (trace) {
      trace.attention.push(maps);
      trace.qkv.push(this.qkv.slice(0, 3 * T * C));
    }
    linear(this.branch, this.mixed, w["attention.out_proj.weight"], w["attention.out_proj.bias"], T, C, C);
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

  feedForward(x, T, w, trace) {
    const C = this.config.embed_dim;
    layerNorm(this.normed, x, w["mlp_norm.weight"], w["mlp_norm.bias"], T, C);
    linear(this.hidden, this.normed, w["mlp.up.weight"], w["mlp.up.bias"], T, 4 * C, C);
    gelu(this.hidden, T * 4 * C, this.config.gelu);
    if (trace) trace.hidden.push(this.hidden.slice(0, T * 4 * C));
    linear(this.branch, this.hidden, w["mlp.down.weight"], w["mlp.down.bias"], T, C, 4 * C);
    for (let i = 0; i < T * C; i++) x[i] += this.branch[i];
  }

  /** Logits (T, V) of the stream x (T, C) after any layer: before the last, the "logit lens" (nostalgebraist 2020). */
  predict(x, T) {
    const { embed_dim: C, vocab_size: vocabSize } = this.config, logits = new Float32Array(T * vocabSize);
    layerNorm(this.normed, x, this.weights["final_norm.weight"], this.weights["final_norm.bias"], T, C);
    linear(logits, this.normed, this.head, null, T, vocabSize, C);
    return logits;
  }
}

/** Where the window begins in which the model reads a text's first `length` tokens, if token `first` is the first that
 * it has read: a full window drops `stride` tokens at its left end. */
function windowStart(length, first, maxSeq, stride) {
  return first + stride * Math.ceil(Math.max(0, length - first - maxSeq) / stride);
}

/** A model reading a text that grows by one token at a time: SlidingWindow of sampler.py, for one row. A window that
 * moves is read anew: all its positions change. off: silent heads. */
class SlidingWindow {
  constructor(model, ids, stride, { off = null, first = Math.max(0, ids.length - model.config.max_seq) } = {}) {
    Object.assign(this, { model, ids: [...ids], stride, off, first, cache: new KVCache(model.config) });
  }

  nextLogits() {
    const start = windowStart(this.ids.length, this.first, this.model.config.max_seq, this.stride);
    if (start !== this.start) this.cache.length = 0;
    this.start = start;
    const unread = this.ids.slice(this.start + this.cache.length);
    return this.model.forward(unread, this.cache, { lastOnly: true, off: this.off });
  }
}
