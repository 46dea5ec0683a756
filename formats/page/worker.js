/* The model's side of the page: it runs in a worker, so that the page never freezes. */
"use strict";

/** The 32-bit value of every 16-bit floating-point number (IEEE 754 binary16). */
function float16Values() {
  return Float32Array.from({ length: 2 ** 16 }, (_, bits) => {
    const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

/** The bytes of base64 text. */
function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** The weights by name; layout: [[name, how many numbers, rows], …] in the order in which they lie in the file.
 *
 * In int8, each row of a matrix has a scale among the float32 numbers, which all come before the int8 ones.
 */
function readWeights(base64, precision, layout) {
  const { buffer } = fromBase64(base64), values = precision === "float16" && float16Values();
  const scaled = layout.reduce((sum, [, count, rows]) => sum + (rows || count), 0);
  const all = values ? Float32Array.from(new Uint16Array(buffer), (bits) => values[bits])
    : new Float32Array(buffer, 0, scaled);
  const weights = {}, levels = new Int8Array(buffer, values ? 0 : 4 * scaled);
  let start = 0, from = 0;
  for (const [name, count, rows] of layout) {
    const numbers = all.subarray(start, start += rows || count);
    weights[name] = rows ? new Float32Array(count) : numbers;
    for (let row = 0, i = 0; row < rows; row++) {
      for (const end = (row + 1) * (count / rows); i < end; i++) weights[name][i] = levels[from++] * numbers[row];
    }
  }
  return weights;
}

/** Row t of a matrix that lies in one array, row after row. */
function rowOf(matrix, t, width) {
  return matrix.subarray(t * width, (t + 1) * width);
}

/** The likeliest tokens of logits (V): [{id, share}]. */
function likeliest(logits, count) {
  const shares = softmax(logits);
  return Array.from(descending(logits).subarray(0, count), (id) => ({ id, share: shares[id] }));
}

/** The mean of -ln p of every token after the first: logits (T, V) against ids (T). */
function lossOf(logits, ids, vocabSize) {
  let total = 0;
  for (let t = 0; t + 1 < ids.length; t++) total -= Math.log(softmax(rowOf(logits, t, vocabSize))[ids[t + 1]]);
  return total / (ids.length - 1);
}

const UNTRUSTED = "this page does not compute what its model computed when the page was made. The file is damaged or "
  + "was changed: make it again with convert.py.";

/** Throw unless the model gives the logits that PyTorch gave when the page was made. */
function checkModel(model, { ids, positions, logits, tolerance }) {
  const all = model.forward(ids, new KVCache(model.config)), { vocab_size: V } = model.config;
  const same = positions.every((t, row) => {
    const own = rowOf(all, t, V);
    return ids.every((id, i) => Math.abs(own[id] - logits[row][i]) <= tolerance); // false if one is not a number
  });
  if (!same) throw new Error(UNTRUSTED);
}

/** What the page can ask of the model. Each method's answer goes back to it. */
class ModelServer {
  load({ model, weights }) {
    const network = new TinyGPT(model.config, readWeights(weights, model.precision, model.layout));
    checkModel(network, model.check);
    this.model = network;
    this.endId = model.tokenizer.endId; // ends a text when it is sampled; null if no token does
    this.suppressed = model.tokenizer.specialIds.filter((id) => id !== this.endId);
    this.stopped = new Set();
    return true;
  }

  /** Logits after each of the ids: T arrays of V numbers. */
  logits({ ids }) {
    const all = this.model.forward(ids, new KVCache(this.model.config)), { vocab_size: V } = this.model.config;
    return ids.map((_, t) => Array.from(rowOf(all, t, V)));
  }

  /** Make tokens, sending them to the page some thirty times a second; the answer is all of their ids. */
  async generate({ ids, maxNewTokens, seed, stride, sampling }, job, send) {
    const window = new SlidingWindow(this.model, ids, stride), made = [];
    let fresh = [], mark = performance.now();
    for (const choice of generateTokens(window, maxNewTokens, seed, sampling, this.suppressed)) {
      made.push(choice.id);
      fresh.push(choice);
      if (choice.id === this.endId) break;
      if (performance.now() - mark < 33) continue;
      send(fresh);
      fresh = [];
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

  /** Attention (layers, nh, T, T) of the ids, and their loss with all heads and without those in `off`. */
  look({ ids, off }) {
    const { vocab_size: V } = this.model.config, trace = new Trace();
    const logits = this.model.forward(ids, new KVCache(this.model.config), { trace });
    const without = !off.length ? logits
      : this.model.forward(ids, new KVCache(this.model.config), { off: new Set(off) });
    this.looked = { ids, trace, logits, without };
    return { attention: trace.attention, loss: lossOf(logits, ids, V), lossWithout: lossOf(without, ids, V) };
  }

  /** What every layer would predict after token t of the ids last looked at; `next`: the likeliest next tokens with
   * all heads, and their shares without those switched off. */
  position({ t, count = 4 }) {
    const { vocab_size: V, embed_dim: C } = this.model.config, { trace, logits, without } = this.looked;
    const lens = trace.residual.map((x) => likeliest(this.model.predict(rowOf(x, t, C).slice(), 1), count));
    const shares = softmax(rowOf(without, t, V));
    const next = likeliest(rowOf(logits, t, V), 8).map((token) => ({ ...token, without: shares[token.id] }));
    return { lens, next };
  }

  /** All of the logit lens: (layers + 1) x (T, V) logits of the ids. */
  lens({ ids }) {
    const trace = new Trace();
    this.model.forward(ids, new KVCache(this.model.config), { trace });
    return trace.residual.map((x) => this.model.predict(x, ids.length));
  }
}

/** Resolve once messages that have arrived were handled. (setTimeout would wait at least 4 ms.) */
function letMessagesIn() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

/** Answer the messages {job, question, request} of the page by {job, answer} or {job, error}, and {job, part} before.
 *
 * Until `load` has checked the model, there is none to ask.
 */
function serve(scope) {
  const server = new ModelServer();
  scope.onmessage = async ({ data: { job, question, request } }) => {
    try {
      if (question !== "load" && !server.model) throw new Error(UNTRUSTED);
      const answer = await server[question](request, job, (part) => scope.postMessage({ job, part }));
      scope.postMessage({ job, answer });
    } catch (error) {
      scope.postMessage({ job, error: error.message });
    }
  };
}

if (typeof document === "undefined" && typeof self !== "undefined") serve(self);
