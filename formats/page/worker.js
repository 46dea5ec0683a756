/* The model's side of the page: it runs in a worker, so that the page never freezes. */

/** The value of a 16-bit floating-point number (IEEE 754 binary16). */
function float16(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return exponent ? sign * (1 + fraction / 1024) * 2 ** (exponent - 15) : sign * fraction * 2 ** -24;
}

function fromBase64(text) {
  return Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** The weights by name; layout: [[name, how many numbers, rows], …] in the order in which they lie in the file. In int8
 * each row of a matrix has a scale among the float32 numbers, which all come before the int8 ones. */
function readWeights(base64, precision, layout) {
  const { buffer } = fromBase64(base64), scaled = layout.reduce((sum, [, count, rows]) => sum + (rows || count), 0);
  const all = precision === "float16" ? Float32Array.from(new Uint16Array(buffer), float16)
    : new Float32Array(buffer, 0, scaled);
  const weights = {}, levels = precision === "int8" && new Int8Array(buffer, 4 * scaled);
  let start = 0, from = 0;
  for (const [name, count, rows] of layout) {
    const numbers = all.subarray(start, start += rows || count), width = count / rows;
    weights[name] = rows ? new Float32Array(count) : numbers;
    for (let i = 0; rows && i < count; i++) weights[name][i] = levels[from++] * numbers[Math.floor(i / width)];
  }
  return weights;
}

const UNTRUSTED = "this page does not compute what its model computed when the page was made. The file is damaged or "
  + "was changed: make it again with convert.py.";

/** What the page can ask of the model. Each method's answer goes back to it. ids: a window, as it is fed. */
class ModelServer {
  stopped = new Set();

  /** The page's own model, unless it does not give the logits that PyTorch gave when the page was made. */
  load({ model, weights }) {
    const { config, check: { ids, positions, logits, tolerance } } = model;
    const network = new TinyGPT(config, readWeights(weights, model.precision, model.layout));
    const all = network.forward(ids, new KVCache(config));
    const same = positions.every((t, row) => ids.every((id, i) =>
      Math.abs(all[t * config.vocab_size + id] - logits[row][i]) <= tolerance)); // false if one is not a number
    if (!same) throw new Error(UNTRUSTED);
    this.own = network;
    this.use(model);
  }

  /** From now on another model answers, {config, weights, tokenizer}; without weights the page's own one. */
  use({ config, weights, tokenizer }) {
    this.model = weights ? new TinyGPT(config, weights) : this.own;
    this.tokenizer = makeTokenizer(tokenizer);
    this.suppressed = suppressedIds(this.tokenizer);
    this.readings = [];
  }

  /** {ids, logits, trace, surprises, loss} of the ids without the heads in `off`; the last two readings are kept. */
  reading(ids, off = []) {
    const key = `${ids} ${off}`, known = this.readings.find((reading) => reading.key === key);
    if (known) return known;
    const trace = { attention: [], qkv: [], middle: [], hidden: [], residual: [] };
    const logits = this.model.forward(ids, new KVCache(this.model.config), { trace, off: new Set(off) });
    const reading = { key, ids, trace, logits, ...surprisesOf(logits, ids, this.model.config.vocab_size) };
    this.readings = [reading, ...this.readings.slice(0, 1)];
    return reading;
  }

  /** Logits after each of the ids: T arrays of V numbers. */
  logits({ ids }) {
    const { logits } = this.reading(ids);
    return ids.map((_, t) => Array.from(rowOf(logits, t, this.model.config.vocab_size)));
  }

  /** Make tokens, sending {ids, surprises} to the page some thirty times a second; the answer is all of their ids. */
  async generate({ ids, maxNewTokens, seed, stride, sampling, off = [], first }, job, send) {
    const window = new SlidingWindow(this.model, ids, stride, { off: new Set(off), first }), made = [];
    let fresh = { ids: [], surprises: [] }, mark = performance.now();
    for (const { id, surprise } of generateTokens(window, maxNewTokens, seed, sampling, this.suppressed)) {
      made.push(id);
      fresh.ids.push(id);
      fresh.surprises.push(surprise);
      if (id === this.tokenizer.endId) break;
      if (performance.now() - mark < 33) continue;
      send(fresh);
      fresh = { ids: [], surprises: [] };
      await letMessagesIn();
      mark = performance.now();
      if (this.stopped.delete(job)) break;
    }
    send(fresh);
    return made;
  }

  stop({ job }) {
    this.stopped.add(job);
  }

  /** Of the ids: attention (nh, T, T) of each layer, the heads' habits, surprises, and loss with and without `off`. */
  look({ ids, off }) {
    const { trace, surprises, loss } = this.reading(ids), texts = ids.map((id) => this.tokenizer.decode([id]));
    const habits = headHabits(trace, ids, this.model.config.num_heads, texts);
    return { attention: trace.attention, habits, surprises, loss, lossWithout: this.reading(ids, off).loss };
  }

  /** At token t: logits (V) and loss; without (V) and lossWithout: those without the heads in `off`. target: the next
   * token, `id` or else the likeliest. lens: of every layer the likeliest tokens, and the target's share there. */
  token({ ids, t, id, off = [] }) {
    const { vocab_size: V, embed_dim: C } = this.model.config, reading = this.reading(ids);
    const silenced = this.reading(ids, off), without = rowOf(silenced.logits, t, V).slice();
    const logits = rowOf(reading.logits, t, V).slice(), target = id ?? argmax(logits);
    const lens = reading.trace.residual.map((x) => {
      const early = this.model.predict(rowOf(x, t, C).slice(), 1), shares = softmax(early);
      const top = Array.from(descending(early).subarray(0, 3), (id) => ({ id, share: shares[id] }));
      return { top, share: shares[target] };
    });
    const parts = contributions(this.model, reading, t, target), { loss } = reading;
    return { logits, loss, without, lossWithout: silenced.loss, target, lens, parts };
  }

  /** All of the logit lens: (layers + 1) x (T, V) logits of the ids. */
  lens({ ids }) {
    return this.reading(ids).trace.residual.map((x) => this.model.predict(x.slice(), ids.length));
  }

  follow({ ids, position, layer, head }) {
    return followToken(this.model, this.reading(ids), position, layer, head);
  }

  train(request, job, send) {
    return trainNetwork(request, send, () => this.stopped.delete(job));
  }

  /** The loss of the ids without each head of this model: [{layer, head, loss, change}], the most needed head first. */
  async rankHeads({ ids }, job, send) {
    const { model } = this, { num_layers: layers, num_heads: heads, vocab_size: V } = model.config;
    const { loss } = this.reading(ids), ranks = []; // meanwhile another model may come into use
    for (let index = 0; index < layers * heads; index++) {
      const logits = model.forward(ids, new KVCache(model.config), { off: new Set([index]) });
      const { loss: without } = surprisesOf(logits, ids, V);
      ranks.push({ layer: Math.floor(index / heads), head: index % heads, loss: without, change: without - loss });
      send(index + 1);
      await letMessagesIn();
    }
    return ranks.sort((a, b) => b.change - a.change);
  }
}

/** Resolve once messages that have arrived were handled. (setTimeout would wait at least 4 ms.) */
function letMessagesIn() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
}

/** Answer the messages {job, question, request} of the page by {job, answer} or {job, error}, and {job, part} before.
 * Until `load` has checked the model, there is none to ask; to train another one needs none. */
if (typeof document === "undefined") {
  const server = new ModelServer();
  self.onmessage = async ({ data: { job, question, request } }) => {
    try {
      if (!["load", "train", "stop"].includes(question) && !server.model) throw new Error(UNTRUSTED);
      const answer = await server[question](request, job, (part) => self.postMessage({ job, part }));
      self.postMessage({ job, answer });
    } catch (error) {
      self.postMessage({ job, error: error.message });
    }
  };
}
