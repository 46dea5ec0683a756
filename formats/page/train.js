/* Training, written out: the network of model.js, each step with its way back (backpropagation), and AdamW. Shapes: B
   windows of T tokens are N = B · T rows of one array; others as in model.js. What a step makes is a pair {x, d}:
   numbers, and room for how much the loss changes with each of them, its gradient. Going back, each step adds to the
   gradients of what it was made of. A weight's gradient has its name and shape. */

const DECAY = 0.01; // of each weight, times the learning rate

/** out (M, n) += a (M, K) · b (K, n). */
function addProduct(out, a, b, M, K, n) {
  for (let m = 0; m < M; m++) addWeighted(out, m * n, a.subarray(m * K, (m + 1) * K), b, 0, n, K, n);
}

/** A matrix (rows, columns) with rows and columns exchanged. */
function transposed(matrix, rows, columns) {
  const result = new Float32Array(rows * columns);
  for (let i = 0; i < matrix.length; i++) result[(i % columns) * rows + Math.floor(i / columns)] = matrix[i];
  return result;
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

/** Numbers for all weights of a config, 0 at first: one array, and its parts by name. */
function zeroWeights(config) {
  const shapes = weightShapes(config), weights = {};
  const all = new Float32Array(shapes.reduce((sum, [, rows, columns]) => sum + rows * columns, 0));
  let start = 0;
  for (const [name, rows, columns] of shapes) weights[name] = all.subarray(start, start += rows * columns);
  return { all, weights };
}

/** Initial weights: small random numbers, so that each sum of many of them has about the size of one. */
function initialWeights(config, seed) {
  const random = new Mersenne(seed), made = zeroWeights(config);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random.uniform())) * Math.cos(2 * Math.PI * random.uniform());
  for (const [name, rows, columns] of weightShapes(config)) {
    const size = name.includes("embedding") || name === "head.weight" ? 0.1 : 1 / Math.sqrt(columns);
    if (rows > 1) made.weights[name].forEach((_, i, weight) => { weight[i] = size * normal(); });
    else if (name.endsWith("weight")) made.weights[name].fill(1); // of a norm
  }
  return made;
}

class Trainer {
  /** config: as of TinyGPT, its max_seq the length of the windows. all: the weights in one array; weights: by name. */
  constructor(config, { all, weights }) {
    const { all: gradient, weights: gradients } = zeroWeights(config);
    Object.assign(this, { config, all, weights, gradient, gradients, model: new TinyGPT(config, weights), steps: 0 });
    this.means = new Float32Array(all.length); // of the gradient, …
    this.squares = new Float32Array(all.length); // … and of its square, over the last steps
  }

  /** The mean loss of targets (N) after ids (N), in nats per token. `backward` then finds its gradient. */
  loss(ids, targets) {
    this.N = ids.length;
    this.way = []; // back: one function for each step
    let x = this.embed(ids);
    for (let layer = 0; layer < this.config.num_layers; layer++) {
      const linear = (input, name) => this.linear(input, `blocks.${layer}.${name}`);
      const norm = (name) => this.norm(x, `blocks.${layer}.${name}`);
      x = this.add(x, linear(this.attend(linear(norm("attention_norm"), "attention.in_proj_")), "attention.out_proj."));
      x = this.add(x, linear(this.gelu(linear(norm("mlp_norm"), "mlp.up.")), "mlp.down."));
    }
    return this.crossEntropy(this.linear(this.norm(x, "final_norm"), "head."), targets);
  }

  /** Leave the gradient of the last loss in `gradients`: all steps back, from the network's end to its beginning. */
  backward() {
    this.gradient.fill(0);
    for (const back of this.way.reverse()) back();
  }

  /** What a step makes; back(d) passes its gradient on. */
  made(x, back) {
    const d = new Float32Array(x.length);
    this.way.push(() => back(d));
    return { x, d };
  }

  embed(ids) {
    const { N, gradients: G, config: { embed_dim: C, max_seq: T } } = this, x = new Float32Array(N * C);
    for (let n = 0; n < N; n += T) x.set(this.model.embed([...ids.subarray(n, n + T)], 0), n * C);
    return this.made(x, (d) => {
      const tokens = G["token_embedding.weight"], positions = G["position_embedding.weight"];
      for (let i = 0; i < N * C; i++) {
        tokens[ids[Math.floor(i / C)] * C + i % C] += d[i];
        positions[i % (T * C)] += d[i];
      }
    });
  }

  /** A sum passes its gradient on to both as it is: along the stream, it reaches the first layer undiminished. */
  add(a, b) {
    const x = a.x.slice(), addTo = (sum, d) => { for (let i = 0; i < d.length; i++) sum[i] += d[i]; };
    addTo(x, b.x);
    return this.made(x, (d) => [a, b].forEach((part) => addTo(part.d, d)));
  }

  /** y = x · matrixᵀ + bias, so dx = dy · matrix and dMatrix = dyᵀ · x. */
  linear({ x, d: dx }, name) {
    const { N } = this, matrix = this.weights[`${name}weight`], bias = this.weights[`${name}bias`];
    const columns = x.length / N, rows = matrix.length / columns, y = new Float32Array(N * rows);
    linear(y, x, matrix, bias, N, rows, columns);
    return this.made(y, (dy) => {
      addProduct(dx, dy, matrix, N, rows, columns);
      addProduct(this.gradients[`${name}weight`], transposed(dy, N, rows), x, rows, N, columns);
      const dBias = this.gradients[`${name}bias`];
      if (bias) for (let i = 0; i < dy.length; i++) dBias[i % rows] += dy[i];
    });
  }

  norm({ x, d: dx }, name) {
    const { N, config: { embed_dim: C } } = this, plain = new Float32Array(N * C);
    const weight = this.weights[`${name}.weight`], bias = this.weights[`${name}.bias`];
    layerNorm(plain, x, new Float32Array(C).fill(1), null, N, C);
    return this.made(plain.map((value, i) => value * weight[i % C] + bias[i % C]), (dy) => {
      const dWeight = this.gradients[`${name}.weight`], dBias = this.gradients[`${name}.bias`];
      const dPlain = dy.map((d, i) => d * weight[i % C]);
      for (let n = 0; n < N; n++) {
        const [row, unit, d] = [x, plain, dPlain].map((all) => rowOf(all, n, C)), middle = mean(row);
        const deviation = Math.sqrt(mean(row.map((v) => (v - middle) ** 2)) + 1e-5);
        const alike = mean(d), along = product(d, unit) / C; // a change of all x alike, or along x, is lost in the norm
        for (let i = 0; i < C; i++) {
          dWeight[i] += dy[n * C + i] * unit[i];
          dBias[i] += dy[n * C + i];
          dx[n * C + i] += (d[i] - alike - unit[i] * along) / deviation;
        }
      }
    });
  }

  /** GELU is x Φ(x), with Φ the normal distribution; its slope is Φ(x) + x φ(x), with φ the density. */
  gelu({ x, d: dx }) {
    const y = x.slice();
    gelu(y, y.length, "exact");
    return this.made(y, (dy) => {
      for (let i = 0; i < x.length; i++) {
        const density = Math.exp(-x[i] * x[i] / 2) / Math.sqrt(2 * Math.PI);
        dx[i] += dy[i] * (0.5 * (1 + erf(x[i] * Math.SQRT1_2)) + x[i] * density);
      }
    });
  }

  /** Attention: (N, C) from queries, keys and values (N, 3C). */
  attend({ x: qkv, d: dqkv }) {
    const { N, config: { embed_dim: C, num_heads: heads, max_seq: T } } = this, hs = C / heads, root = Math.sqrt(hs);
    const mixed = new Float32Array(N * C), weights = new Float32Array(heads * N * T);
    // work(…) for each head and token: where its part of a row begins in (N, C) and in (N, 3C); where the part of the
    // window's first token begins there; its row of weights; and how many tokens it sees: that is the mask.
    const each = (work) => {
      for (let h = 0; h < heads; h++) {
        for (let n = 0; n < N; n++) {
          const from = h * hs, seen = n % T + 1, row = rowOf(weights, h * N + n, T);
          work(n * C + from, 3 * C * n + from, 3 * C * (n + 1 - seen) + from, row, seen);
        }
      }
    };
    each((out, query, first, row, seen) => {
      dots(row, 0, qkv, query, qkv, first + C, 3 * C, seen, hs);
      let largest = -Infinity, total = 0;
      for (let j = 0; j < seen; j++) largest = Math.max(largest, row[j]);
      for (let j = 0; j < seen; j++) total += row[j] = Math.exp((row[j] - largest) / root);
      for (let j = 0; j < seen; j++) row[j] /= total;
      addWeighted(mixed, out, row, qkv, first + 2 * C, 3 * C, seen, hs);
    });
    const dRow = new Float32Array(T);
    return this.made(mixed, (d) => each((out, query, first, row, seen) => {
      dots(dRow, 0, d, out, qkv, first + 2 * C, 3 * C, seen, hs); // of the weights, …
      let along = 0;
      for (let j = 0; j < seen; j++) along += dRow[j] * row[j];
      for (let j = 0; j < seen; j++) { // … and through softmax, of the scores
        dRow[j] = row[j] * (dRow[j] - along) / root;
        const key = first + 3 * C * j + C;
        for (let i = 0; i < hs; i++) {
          dqkv[key + i] += dRow[j] * qkv[query + i];
          dqkv[key + C + i] += row[j] * d[out + i];
        }
      }
      addWeighted(dqkv, query, dRow, qkv, first + C, 3 * C, seen, hs);
    }));
  }

  /** The mean of -ln p of the targets; through softmax, its gradient is p - (1 for what came, 0 for the others). */
  crossEntropy({ x: logits, d: dLogits }, targets) {
    const { N } = this, V = logits.length / N;
    let loss = 0;
    for (let n = 0; n < N; n++) {
      const shares = softmax(rowOf(logits, n, V));
      loss -= Math.log(shares[targets[n]]) / N;
      for (let v = 0; v < V; v++) dLogits[n * V + v] = (shares[v] - (v === targets[n])) / N;
    }
    return loss;
  }

  /** One step of AdamW (Loshchilov & Hutter 2019): each weight moves by about `rate`, against its mean gradient. */
  step(rate) {
    const { all, gradient, means, squares } = this, steps = ++this.steps;
    let squared = 0;
    for (let i = 0; i < gradient.length; i++) squared += gradient[i] ** 2;
    const clip = Math.min(1, 1 / Math.sqrt(squared)); // a rare batch has a gradient many times the usual
    const mean = 1 - 0.9 ** steps, square = 1 - 0.99 ** steps; // in the first steps there is little to average
    for (let i = 0; i < all.length; i++) {
      const g = gradient[i] * clip;
      means[i] = 0.9 * means[i] + 0.1 * g;
      squares[i] = 0.99 * squares[i] + 0.01 * g * g;
      all[i] -= rate * (means[i] / mean / (Math.sqrt(squares[i] / square) + 1e-8) + DECAY * all[i]);
    }
  }
}
