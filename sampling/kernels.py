"""The decoder for one new token per row, and the choice of that token, in plain loops that numba compiles.

Each function computes what one of `tiny_decoder.py` or `sampler.py` computes, number by number. `compiled_step.py`
compares the decoder with the model before it is used; tests compare the choice. For small networks PyTorch's calls take
more time than the arithmetic; here there are no calls.
B rows, C width, nh heads, hs head size, L layers, S slots, V vocabulary. All functions are in one file, because numba
stores compiled code beside the file, and checks only this file to see whether that code is still valid.

Every matrix has one scale per output, which is 1 for float32. With int8 a weight is a whole number from -127 to 127
times the scale: a quarter of the bytes to read. The sums are float32 in both.
"""

import math

import numba
import numpy as np
from numba import float32

# Sums may be reordered, so that they use vector instructions. Not all of fastmath: NaN must stay NaN.
compiled = numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy", nogil=True, cache=True)
# In the written order, and in float64 as in sampler.py, so that the filters choose the same tokens. In numba, float(x)
# of a float32 stays float32: np.float64(x) is needed.
exact = numba.njit(error_model="numpy", nogil=True, cache=True)

# --- The decoder -------------------------------------------------------------------------------------------------

# erf(x) = x top(x²) / bottom(x²) for |x| < 4, highest power first: Eigen's approximation, error below 5e-7. A
# polynomial is computed with vector instructions, math.erf is not.
TOP = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04)
TOP = tuple(map(np.float32, (*TOP, -2.95459980854025e-03, -1.60960333262415e-02)))
BOTTOM = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03)
BOTTOM = tuple(map(np.float32, (*BOTTOM, -1.42647390514189e-02)))


@compiled
def linear(x, weight, scale, y):
    """x (B, in) -> y (B, out) = scale[0] * (weight x) + scale[1].

    Four rows of the matrix at a time: four streams from memory are faster than one, and each x[b, i] serves four sums.
    """
    last = weight.shape[0] - 1
    for row in range(0, last + 1, 4):
        two, three, four = min(row + 1, last), min(row + 2, last), min(row + 3, last)  # at the end repeat the last row
        for b in range(x.shape[0]):
            sum1, sum2, sum3, sum4 = float32(0), float32(0), float32(0), float32(0)
            for i in range(x.shape[1]):
                sum1 += float32(weight[row, i]) * x[b, i]
                sum2 += float32(weight[two, i]) * x[b, i]
                sum3 += float32(weight[three, i]) * x[b, i]
                sum4 += float32(weight[four, i]) * x[b, i]
            for out, total in ((row, sum1), (two, sum2), (three, sum3), (four, sum4)):
                y[b, out] = total * scale[0, out] + scale[1, out]


@compiled
def layer_norm(x, weight, scale, y):
    """x (B, C) -> y (B, C); the second row of scale (2, C) has the biases, as in `linear`."""
    width = float32(x.shape[1])
    for b in range(x.shape[0]):
        mean, variance = float32(0), float32(0)
        for i in range(x.shape[1]):
            mean += x[b, i]
        mean /= width
        for i in range(x.shape[1]):
            variance += (x[b, i] - mean) ** 2
        factor = float32(1) / math.sqrt(variance / width + float32(1e-5))
        for i in range(x.shape[1]):
            y[b, i] = (x[b, i] - mean) * factor * weight[i] + scale[1, i]


@compiled
def gelu(x, tanh):
    """x (B, 4C), in place: the exact GELU or the tanh approximation."""
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            v = x[b, i]
            if tanh:
                inner = float32(0.7978845608) * (v + float32(0.044715) * v * v * v)
                x[b, i] = v / (float32(1) + math.exp(float32(-2) * inner))  # (1 + tanh z) / 2, written with exp
            else:
                u = min(max(v * float32(0.7071067812), float32(-4)), float32(4))
                top, bottom = float32(0), float32(0)
                for factor in TOP:
                    top = top * u * u + factor
                for factor in BOTTOM:
                    bottom = bottom * u * u + factor
                x[b, i] = float32(0.5) * v * (float32(1) + u * top / bottom)


@compiled
def attend(qkv, keys, values, padding, first, length, h):
    """Write the new keys and values of qkv (B, 3C) to slot `length` of keys and values (all rows, nh, S, hs), in the
    rows from `first` on; attend with the queries to the slots after each row's padding (B,), into h (B, C)."""
    heads, size, width = keys.shape[1], keys.shape[3], h.shape[1]
    factor = float32(1) / math.sqrt(float32(size))
    weights = np.empty(length + 1, np.float32)
    for b in range(h.shape[0]):
        for head in range(heads):
            begin = head * size
            keys[first + b, head, length] = qkv[b, width + begin : width + begin + size]
            values[first + b, head, length] = qkv[b, 2 * width + begin : 2 * width + begin + size]
            h[b, begin : begin + size] = 0
            # Views, so that slots count from 0: numba then knows that none is negative, and computes vectors of them.
            row_keys, row_values = keys[first + b, head, padding[b] :], values[first + b, head, padding[b] :]
            maximum = float32(-np.inf)
            for slot in range(length + 1 - padding[b]):
                score = float32(0)
                for i in range(size):
                    score += qkv[b, begin + i] * row_keys[slot, i]
                weights[slot] = score * factor
                maximum = max(maximum, weights[slot])
            total = float32(0)
            for slot in range(length + 1 - padding[b]):
                weights[slot] = math.exp(weights[slot] - maximum)
                total += weights[slot]
            for slot in range(length + 1 - padding[b]):
                for i in range(size):
                    h[b, begin + i] += weights[slot] / total * row_values[slot, i]


@compiled
def forward(w, ids, memory, padding, first, length, tanh):
    """ids (B,) of the rows from `first` on -> logits (B, V). Their keys and values go to slot `length` of the cache's
    memory (L, 2, all rows, nh, S, hs). The first slots of a row, padding (B,), hold no token."""
    batch, width = ids.shape[0], w.tokens.shape[1]
    x, h = np.empty((batch, width), np.float32), np.empty((batch, width), np.float32)
    qkv, wide = np.empty((batch, 3 * width), np.float32), np.empty((batch, 4 * width), np.float32)
    branch = np.empty_like(x)
    for b in range(batch):
        x[b] = w.tokens[ids[b]] + w.positions[length - padding[b]]
    for n in range(memory.shape[0]):
        layer_norm(x, w.norms[0][2 * n], w.norms[1][2 * n], h)
        linear(h, w.qkv[0][n], w.qkv[1][n], qkv)
        attend(qkv, memory[n, 0], memory[n, 1], padding, first, length, h)
        linear(h, w.out[0][n], w.out[1][n], branch)
        x += branch
        layer_norm(x, w.norms[0][2 * n + 1], w.norms[1][2 * n + 1], h)
        linear(h, w.up[0][n], w.up[1][n], wide)
        gelu(wide, tanh)
        linear(wide, w.down[0][n], w.down[1][n], branch)
        x += branch
    layer_norm(x, w.norms[0][-1], w.norms[1][-1], h)
    logits = np.empty((batch, w.tokens.shape[0]), np.float32)
    linear(h, w.head[0][0], w.head[1][0], logits)
    return logits


# --- The choice --------------------------------------------------------------------------------------------------


@exact
def nucleus(top, top_p):
    """How many of these logits, in descending order, are needed for a total probability of top_p; at least 1."""
    shares = np.empty(top.shape[0])
    for n in range(top.shape[0]):
        shares[n] = math.exp(np.float64(top[n]) - np.float64(top[0]))
    total, cumulative = shares.sum(), 0.0
    for n in range(top.shape[0]):
        cumulative += shares[n] / total
        if n > 0 and cumulative - shares[n] / total >= top_p:
            return n
    return top.shape[0]


@exact
def keep_largest(x, top_k, top_p):
    """Set x (V,) to -inf outside the k largest, and of these outside the fewest with a total probability of top_p."""
    rest = x.shape[0] - top_k
    top = np.sort(np.partition(x, rest)[rest:])[::-1]
    if top_p < 1:
        top = top[: nucleus(top, top_p)]
    least = top[-1]
    ties = np.sum(top == least)  # of equal logits those with the lower ids stay
    for i in range(x.shape[0]):
        if x[i] == least and ties > 0:
            ties -= 1
        elif x[i] <= least:
            x[i] = -np.inf


@exact
def sample(x, uniform):
    """The id at which the cumulative distribution of softmax(x) passes the uniform number."""
    maximum, cumulative, last = np.float64(x.max()), 0.0, 0
    shares = np.empty(x.shape[0])
    for i in range(x.shape[0]):
        shares[i] = math.exp(np.float64(x[i]) - maximum)
    shares /= shares.sum()
    target = uniform * shares.sum()
    for i in range(x.shape[0]):
        if shares[i] > 0:
            cumulative, last = cumulative + shares[i], i
        if cumulative > target:
            break
    return last


@exact
def choose(x, seen, uniform, temperature, top_k, top_p, min_p, penalty):
    """One token for logits x (V,), which are changed in place. The filters are the fields of `sampler.Sampling`."""
    if penalty != 1:
        for i in range(x.shape[0]):
            if seen[i]:
                x[i] = x[i] / float32(penalty) if x[i] > 0 else x[i] * float32(penalty)
    if temperature < 1e-6:
        return np.argmax(x)
    if temperature != 1:
        x = (x - x.max()) / float32(temperature)
    kept = int(top_k) if 0 < top_k < x.shape[0] else x.shape[0]
    if kept < x.shape[0] or top_p < 1:
        keep_largest(x, kept, top_p)
    if min_p > 0:
        x[x < x.max() + float32(math.log(min_p))] = -np.inf
    return sample(x, uniform)


@exact
def make_tokens(logits, uniforms, w, memory, padding, first, length, tanh, suppressed, seen, *filters):
    """logits (B, V) and uniforms (B, N) -> the next N tokens (N, B); fewer if logits are not finite.

    All tokens but the last are added to the cache, from slot `length` on (see `forward`), and all of them to seen
    (B, V). filters: the last arguments of `choose`.
    """
    chosen = np.empty(uniforms.shape[::-1], np.int64)
    for n in range(chosen.shape[0]):
        if n > 0:
            logits = forward(w, chosen[n - 1], memory, padding, first, length + n - 1, tanh)
        if not np.isfinite(logits.sum(dtype=np.float64)):
            return chosen[:n]
        for b in range(chosen.shape[1]):
            x = logits[b] + suppressed
            chosen[n, b] = choose(x, seen[b], uniforms[b, n], *filters)
            seen[b, chosen[n, b]] = True
    return chosen
