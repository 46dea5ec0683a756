/* The parts of the network in plain loops: linear maps, layer norm, GELU. A matrix (rows, columns) is one Float32Array,
   row after row. T counts tokens, C is the width of the stream. */

/** out (T, rows) = x (T, columns) · matrixᵀ + bias, with matrix (rows, columns), as PyTorch's nn.Linear keeps it. */
function linear(out, x, matrix, bias, T, rows, columns) {
  for (let t = 0; t < T; t++) dots(out, t * rows, x, t * columns, matrix, 0, columns, rows, columns);
  if (bias) for (let i = 0; i < T * rows; i++) out[i] += bias[i % rows];
}

/** Products of one vector with `count` others: out[outStart + n] = Σ_i x[xStart + i] · others[first + n · step + i].
 * Four at once: a number of x that is loaded is used four times. */
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
    const inner = kind === "exact" ? erf(value * Math.SQRT1_2)
      : Math.tanh(Math.sqrt(2 / Math.PI) * (value + 0.044715 * value ** 3));
    x[i] = 0.5 * value * (1 + inner);
  }
}
