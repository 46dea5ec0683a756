/* Training, written out: the loss of a batch, its gradient by the chain rule (backpropagation), and AdamW.

   It trains the network of model.js with biases, the exact GELU and a head of its own. Shapes: B windows of T tokens
   are N = B · T rows of one array; others as there. A gradient has the shape and the name of its weight.
*/
"use strict";

/** out (M, n) += a (M, K) · b (K, n). */
function addProduct(out, a, b, M, K, n) {
  for (let m = 0; m < M; m++) addWeighted(out, m * n, a.subarray(m * K, (m + 1) * K), b, 0, n, K, n);
}

/** A matrix (rows, columns) with rows and columns exchanged. */
function transposed(matrix, rows, columns) {
  const result = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = matrix[row * columns + column];
  }
  return result;
}

/** The gradient of `linear`, y = x · matrixᵀ + bias, from dy (N, rows): added to dMatrix and dBias; returns dx. */
function linearBack(dMatrix, dBias, dy, x, matrix, N, rows, columns) {
  const dx = new Float32Array(N * columns);
  addProduct(dx, dy, matrix, N, rows, columns); // dx = dy · matrix
  addProduct(dMatrix, transposed(dy, N, rows), x, rows, N, columns); // dMatrix += dyᵀ · x
  if (dBias) for (let i = 0; i < N * rows; i++) dBias[i % rows] += dy[i];
  return dx;
}

/** The gradient of `layerNorm`: added to dx, dWeight and dBias. */
function layerNormBack(dx, dWeight, dBias, dy, x, weight, N, C) {
  for (let start = 0; start < N * C; start += C) {
    let mean = 0, variance = 0, sum = 0, along = 0;
    for (let i = 0; i < C; i++) mean += x[start + i] / C;
    for (let i = 0; i < C; i++) variance += (x[start + i] - mean) ** 2 / C;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    for (let i = 0; i < C; i++) {
      const g = dy[start + i], normed = (x[start + i] - mean) * scale;
      dWeight[i] += g * normed;
      dBias[i] += g;
      sum += g * weight[i];
      along += g * weight[i] * normed;
    }
    for (let i = 0; i < C; i++) { // a change of all x alike, or along x, is lost in the norm
      const normed = (x[start + i] - mean) * scale;
      dx[start + i] += scale * (dy[start + i] * weight[i] - (sum + normed * along) / C);
    }
  }
}

/** Multiply dy in place by the slope of GELU at x; GELU is x Φ(x), with Φ the normal distribution. */
function geluBack(dy, x) {
  for (let i = 0; i < x.length; i++) {
    const density = Math.exp(-x[i] * x[i] / 2) / Math.sqrt(2 * Math.PI);
    dy[i] *= 0.5 * (1 + erf(x[i] * Math.SQRT1_2)) + x[i] * density;
  }
}

/** The weights that a network of this config has: [[name, rows, columns], …]; a vector has one row. */
function weightShapes({ vocab_size: V, max_seq: maxSeq, embed_dim: C, num_layers: layers }) {
  const norm = (name) => [[`${name}.weight`, 1, C], [`${name}.bias`, 1, C]];
  const matrix = (name, rows, columns) => [[`${name}weight`, rows, columns], [`${name}bias`, 1, rows]];
  const blocks = Array.from({ length: layers }, (_, layer) => `blocks.${layer}.`).flatMap((block) => [
    ...norm(`${block}attention_norm`), ...matrix(`${block}attention.in_proj_`, 3 * C, C),
    ...matrix(`${block}attention.out_proj.`, C, C), ...norm(`${block}mlp_norm`),
    ...matrix(`${block}mlp.up.`, 4 * C, C), ...matrix(`${block}mlp.down.`, C, 4 * C)]);
  return [["token_embedding.weight", V, C], ["position_embedding.weight", maxSeq, C], ...blocks,
    ...norm("final_norm"), ["head.weight", V, C]];
}

/** Weights of these shapes, all 0, by name; they lie in one array. */
function zeroWeights(shapes) {
  const all = new Float32Array(shapes.reduce((sum, [, rows, columns]) => sum + rows * columns, 0)), weights = {};
  let start = 0;
  for (const [name, rows, columns] of shapes) weights[name] = all.subarray(start, start += rows * columns);
  return { all, weights };
}

/** Initial weights: small random numbers, so that each sum of many of them has about the size of one. */
function initialWeights(config, seed) {
  const random = new Mersenne(seed), shapes = weightShapes(config), { all, weights } = zeroWeights(shapes);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random.uniform())) * Math.cos(2 * Math.PI * random.uniform());
  for (const [name, rows, columns] of shapes) {
    const embedding = name.includes("embedding") || name === "head.weight";
    const size = rows === 1 ? 0 : embedding ? 0.1 : 1 / Math.sqrt(columns);
    for (let i = 0; i < weights[name].length; i++) weights[name][i] = size && size * normal();
    if (name.endsWith("norm.weight")) weights[name].fill(1);
  }
  return { all, weights };
}

class Trainer {
  /** config: as of TinyGPT, its max_seq the length of the windows. all: one array that holds the weights, which change
   * in place; weights: its parts, by name. */
  constructor(config, { all, weights }) {
    Object.assign(this, { model: new TinyGPT(config, weights), all, T: config.max_seq });
    const { all: gradient, weights: gradients } = zeroWeights(weightShapes(config));
    Object.assign(this, { gradient, gradients });
    this.means = new Float32Array(all.length); // of the gradient, …
    this.squares = new Float32Array(all.length); // … and of its square, over the last steps
    this.steps = 0;
  }

  /** Forward: the mean loss of targets (N) after ids (N), in nats per token. Keeps what `backward` needs. */
  loss(ids, targets) {
    const { embed_dim: C, vocab_size: V } = this.model.config, { weights: W, head } = this.model, N = ids.length;
    let x = new Float32Array(N * C);
    for (let n = 0; n < N; n += this.T) x.set(this.model.embed(Array.from(ids.subarray(n, n + this.T)), 0), n * C);
    const blocks = this.model.layers.map((w) => {
      const block = this.forwardBlock(x, w, N);
      x = block.after;
      return block;
    });
    const normed = new Float32Array(N * C), shares = new Float32Array(N * V);
    layerNorm(normed, x, W["final_norm.weight"], W["final_norm.bias"], N, C);
    linear(shares, normed, head, null, N, V, C);
    let loss = 0;
    for (let n = 0; n < N; n++) {
      const row = shares.subarray(n * V, (n + 1) * V);
      let largest = -Infinity, total = 0;
      for (let v = 0; v < V; v++) largest = Math.max(largest, row[v]);
      for (let v = 0; v < V; v++) total += row[v] = Math.exp(row[v] - largest);
      for (let v = 0; v < V; v++) row[v] /= total;
      loss -= Math.log(row[targets[n]]) / N;
    }
    this.kept = { ids, targets, blocks, x, normed, shares };
    return loss;
  }

  /** One block on x (N, C): all that its gradient needs. */
  forwardBlock(x, w, N) {
    const { embed_dim: C } = this.model.config, zeros = (columns) => new Float32Array(N * columns);
    const block = { x, normed1: zeros(C), qkv: zeros(3 * C), mixed: zeros(C), middle: zeros(C), normed2: zeros(C),
      up: zeros(4 * C), after: zeros(C) };
    layerNorm(block.normed1, x, w.norm1, w.norm1Bias, N, C);
    linear(block.qkv, block.normed1, w.qkv, w.qkvBias, N, 3 * C, C);
    block.attention = this.attend(block.mixed, block.qkv, N);
    linear(block.middle, block.mixed, w.out, w.outBias, N, C, C);
    for (let i = 0; i < N * C; i++) block.middle[i] += x[i];
    layerNorm(block.normed2, block.middle, w.norm2, w.norm2Bias, N, C);
    linear(block.up, block.normed2, w.up, w.upBias, N, 4 * C, C);
    block.hidden = block.up.slice();
    gelu(block.hidden, N * 4 * C, "exact");
    linear(block.after, block.hidden, w.down, w.downBias, N, C, 4 * C);
    for (let i = 0; i < N * C; i++) block.after[i] += block.middle[i];
    return block;
  }

  /** Run work(from, n, at, seen) for each head and token n: where the head's part of row n begins in an array (N, C),
   * where its row begins in the attention weights (heads, N, T), and how many tokens it sees. */
  eachHead(N, work) {
    const { embed_dim: C, num_heads: heads } = this.model.config, { T } = this;
    for (let head = 0; head < heads; head++) {
      for (let n = 0; n < N; n++) work(head * (C / heads), n, (head * N + n) * T, n % T + 1);
    }
  }

  /** Attention: mixed (N, C) from qkv (N, 3C); returns its weights (heads, N, T). */
  attend(mixed, qkv, N) {
    const { embed_dim: C, num_heads: heads } = this.model.config, hs = C / heads, root = Math.sqrt(hs);
    const attention = new Float32Array(heads * N * this.T);
    this.eachHead(N, (from, n, at, seen) => {
      const first = 3 * C * (n + 1 - seen) + from; // the window's first token
      dots(attention, at, qkv, 3 * C * n + from, qkv, first + C, 3 * C, seen, hs);
      let largest = -Infinity, total = 0;
      for (let j = at; j < at + seen; j++) largest = Math.max(largest, attention[j]);
      for (let j = at; j < at + seen; j++) total += attention[j] = Math.exp((attention[j] - largest) / root);
      for (let j = at; j < at + seen; j++) attention[j] /= total;
      addWeighted(mixed, n * C + from, attention.subarray(at, at + seen), qkv, first + 2 * C, 3 * C, seen, hs);
    });
    return attention;
  }

  /** Backward through `attend`: dqkv (N, 3C) from dMixed (N, C). */
  attendBack(dMixed, { qkv, attention }, N) {
    const { embed_dim: C, num_heads: heads } = this.model.config, hs = C / heads, root = Math.sqrt(hs);
    const dqkv = new Float32Array(N * 3 * C), dScores = new Float32Array(this.T);
    this.eachHead(N, (from, n, at, seen) => {
      const first = 3 * C * (n + 1 - seen) + from, query = 3 * C * n + from, out = n * C + from;
      dots(dScores, 0, dMixed, out, qkv, first + 2 * C, 3 * C, seen, hs); // of the weights, …
      let along = 0;
      for (let j = 0; j < seen; j++) along += dScores[j] * attention[at + j];
      for (let j = 0; j < seen; j++) { // … then of the scores: softmax
        const weight = attention[at + j], key = first + 3 * C * j + C;
        const d = dScores[j] = weight * (dScores[j] - along) / root;
        for (let i = 0; i < hs; i++) {
          dqkv[key + i] += d * qkv[query + i];
          dqkv[key + C + i] += weight * dMixed[out + i];
        }
      }
      addWeighted(dqkv, query, dScores, qkv, first + C, 3 * C, seen, hs);
    });
    return dqkv;
  }

  /** Backward: the gradient of the mean loss for every weight, from the end of the network to its beginning. */
  backward() {
    const { ids, targets, blocks, x, normed, shares: dLogits } = this.kept, N = ids.length;
    const { embed_dim: C, vocab_size: V } = this.model.config, { gradients: G, model: { weights: W, head } } = this;
    this.gradient.fill(0);
    for (let n = 0; n < N; n++) dLogits[n * V + targets[n]] -= 1; // of softmax and -ln p together: p - (what came)
    for (let i = 0; i < N * V; i++) dLogits[i] /= N;
    const dNormed = linearBack(G["head.weight"], null, dLogits, normed, head, N, V, C);
    const dx = new Float32Array(N * C);
    layerNormBack(dx, G["final_norm.weight"], G["final_norm.bias"], dNormed, x, W["final_norm.weight"], N, C);
    for (let layer = blocks.length - 1; layer >= 0; layer--) this.backwardBlock(dx, blocks[layer], layer, N);
    for (let n = 0; n < N; n++) {
      for (let i = 0; i < C; i++) {
        G["token_embedding.weight"][ids[n] * C + i] += dx[n * C + i];
        G["position_embedding.weight"][(n % this.T) * C + i] += dx[n * C + i];
      }
    }
  }

  /** Backward through one block: dx (N, C), the gradient of its output, becomes that of its input. A branch adds to the
   * stream, so the stream's own gradient passes as it is, and reaches the first layer undiminished. */
  backwardBlock(dx, block, layer, N) {
    const { embed_dim: C } = this.model.config, w = this.model.layers[layer];
    const g = (name) => this.gradients[`blocks.${layer}.${name}`];
    const dHidden = linearBack(g("mlp.down.weight"), g("mlp.down.bias"), dx, block.hidden, w.down, N, C, 4 * C);
    geluBack(dHidden, block.up);
    const dNormed2 = linearBack(g("mlp.up.weight"), g("mlp.up.bias"), dHidden, block.normed2, w.up, N, 4 * C, C);
    layerNormBack(dx, g("mlp_norm.weight"), g("mlp_norm.bias"), dNormed2, block.middle, w.norm2, N, C);
    const dMixed = linearBack(g("attention.out_proj.weight"), g("attention.out_proj.bias"), dx, block.mixed, w.out,
      N, C, C);
    const dqkv = this.attendBack(dMixed, block, N);
    const dNormed1 = linearBack(g("attention.in_proj_weight"), g("attention.in_proj_bias"), dqkv, block.normed1, w.qkv,
      N, 3 * C, C);
    layerNormBack(dx, g("attention_norm.weight"), g("attention_norm.bias"), dNormed1, block.x, w.norm1, N, C);
  }

  /** One step of AdamW (Loshchilov & Hutter 2019): each weight moves by about `rate`, against its mean gradient. */
  step(rate, decay = 0.01) {
    const { all, gradient, means, squares } = this, steps = ++this.steps;
    let norm = 0;
    for (let i = 0; i < gradient.length; i++) norm += gradient[i] ** 2;
    const clip = Math.min(1, 1 / Math.sqrt(norm)); // a rare batch has a gradient many times the usual
    const mean = 1 - 0.9 ** steps, square = 1 - 0.99 ** steps; // in the first steps there is little to average
    for (let i = 0; i < all.length; i++) {
      const g = gradient[i] * clip;
      means[i] = 0.9 * means[i] + 0.1 * g;
      squares[i] = 0.99 * squares[i] + 0.01 * g * g;
      all[i] -= rate * (means[i] / mean / (Math.sqrt(squares[i] / square) + 1e-8) + decay * all[i]);
    }
  }
}
