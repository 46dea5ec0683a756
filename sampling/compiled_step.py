"""The whole decoder for one new token a row, in plain loops that numba compiles (pip install numba).

The textbook's twin: each function below is one line of `tiny_decoder.py`, and the tests hold the two equal. At this
size a token costs less arithmetic than PyTorch's calls around it; here there are none. Shapes as in tiny_decoder.py,
L: num_layers, S: max_seq. Every weight matrix has one scale per output, which is 1 for float32: with int8 a weight is
a whole number from -127 to 127 times the scale, a quarter of the bytes to read, and the sums stay float32.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from numba import float32
from torch import Tensor, nn

from tiny_decoder import KVCache, TinyGPT

WEIGHTS = ("float32", "int8")
# Sums may be taken in any order, which lets them use vector instructions; NaN must stay NaN, so not all of fastmath.
compiled = numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy", cache=True)


# erf(x) = x top(x²) / bottom(x²) for |x| < 4, highest power first: Eigen's approximation, within 5e-7. A polynomial
# takes a vector of numbers at a time, which math.erf does not.
TOP = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04)
TOP = tuple(map(np.float32, (*TOP, -2.95459980854025e-03, -1.60960333262415e-02)))
BOTTOM = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03)
BOTTOM = tuple(map(np.float32, (*BOTTOM, -1.42647390514189e-02)))


class Weights(NamedTuple):
    """All that the decoder knows, one array for all layers. A matrix is followed by its outputs' scale and bias."""

    tokens: np.ndarray  # (V, C)
    positions: np.ndarray  # (S, C)
    norms: np.ndarray  # (2 L + 1, 2, C): weight and bias, in the order in which they are used
    qkv: np.ndarray  # (L, 3C, C), float32 or int8
    qkv_scale: np.ndarray  # (L, 2, 3C)
    out: np.ndarray  # (L, C, C)
    out_scale: np.ndarray
    up: np.ndarray  # (L, 4C, C)
    up_scale: np.ndarray
    down: np.ndarray  # (L, C, 4C)
    down_scale: np.ndarray
    head: np.ndarray  # (1, V, C)
    head_scale: np.ndarray


@compiled
def linear(x, weight, scale, y):
    """x (B, in) -> y (B, out) = scale[0] * (weight x) + scale[1]; a row of the matrix is read once for the batch."""
    for row in range(weight.shape[0]):
        for b in range(x.shape[0]):
            total = float32(0)
            for i in range(x.shape[1]):
                total += float32(weight[row, i]) * x[b, i]
            y[b, row] = total * scale[0, row] + scale[1, row]


@compiled
def layer_norm(x, norm, y):
    """x (B, C) -> y (B, C); norm (2, C) is weight and bias."""
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
            y[b, i] = (x[b, i] - mean) * factor * norm[0, i] + norm[1, i]


@compiled
def gelu(x, tanh):
    """x (B, 4C), in place: the exact one or the tanh approximation."""
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
def attend(qkv, keys, values, length, h):
    """The new token's qkv (B, 3C) joins keys and values (B, nh, S, hs) at slot `length`; the outcome is h (B, C)."""
    heads, size = keys.shape[1], keys.shape[3]
    width = heads * size
    factor = float32(1) / math.sqrt(float32(size))
    weights = np.empty(length + 1, np.float32)
    for b in range(keys.shape[0]):
        for head in range(heads):
            begin = head * size
            for i in range(size):
                keys[b, head, length, i] = qkv[b, width + begin + i]
                values[b, head, length, i] = qkv[b, 2 * width + begin + i]
                h[b, begin + i] = 0
            largest = float32(-np.inf)
            for slot in range(length + 1):
                score = float32(0)
                for i in range(size):
                    score += qkv[b, begin + i] * keys[b, head, slot, i]
                weights[slot] = score * factor
                largest = max(largest, weights[slot])
            total = float32(0)
            for slot in range(length + 1):
                weights[slot] = math.exp(weights[slot] - largest)
                total += weights[slot]
            for slot in range(length + 1):
                for i in range(size):
                    h[b, begin + i] += weights[slot] / total * values[b, head, slot, i]


@compiled
def forward(w, ids, cache, length, tanh):
    """ids (B,) come at slot `length` of the cache (L, 2, B, nh, S, hs) -> logits (B, V)."""
    batch, width = ids.shape[0], w.tokens.shape[1]
    x, h = np.empty((batch, width), np.float32), np.empty((batch, width), np.float32)
    qkv, wide = np.empty((batch, 3 * width), np.float32), np.empty((batch, 4 * width), np.float32)
    branch = np.empty_like(x)
    for b in range(batch):
        x[b] = w.tokens[ids[b]] + w.positions[length]
    for n in range(cache.shape[0]):
        layer_norm(x, w.norms[2 * n], h)
        linear(h, w.qkv[n], w.qkv_scale[n], qkv)
        attend(qkv, cache[n, 0], cache[n, 1], length, h)
        linear(h, w.out[n], w.out_scale[n], branch)
        x += branch
        layer_norm(x, w.norms[2 * n + 1], h)
        linear(h, w.up[n], w.up_scale[n], wide)
        gelu(wide, tanh)
        linear(wide, w.down[n], w.down_scale[n], branch)
        x += branch
    layer_norm(x, w.norms[-1], h)
    logits = np.empty((batch, w.tokens.shape[0]), np.float32)
    linear(h, w.head[0], w.head_scale[0], logits)
    return logits


def with_bias(norm: nn.LayerNorm) -> Tensor:
    """Weight and bias (2, C); a norm without a bias has one of zeros."""
    return torch.stack([norm.weight, torch.zeros_like(norm.weight) if norm.bias is None else norm.bias]).detach()


def matrices(layers: list[tuple[Tensor, Tensor | None]], weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, in) and biases of all layers -> (L, out, in) and (L, 2, out), scales and biases."""
    weight = torch.stack([weight.detach() for weight, _bias in layers])
    bias = torch.stack([torch.zeros(len(weight)) if bias is None else bias.detach() for weight, bias in layers])
    scale = torch.ones_like(bias)
    if weights == "int8":
        scale = weight.abs().amax(dim=2).clamp(min=1e-12) / 127
        weight = (weight / scale[:, :, None]).round().to(torch.int8)
    return weight.numpy(), torch.stack([scale, bias], dim=1).numpy()


class CompiledStep:
    """To be given to `sampler.SlidingWindow` as `step`, on a CPU. It keeps a copy of the blocks' weights."""

    def __init__(self, model: TinyGPT, weights: str = "float32"):
        """weights: "float32" or "int8"."""
        self.tanh = model.config.gelu == "tanh"
        blocks = [(block.attention, block.mlp) for block in model.blocks]
        norms = [norm for block in model.blocks for norm in (block.attention_norm, block.mlp_norm)]
        self.weights = Weights(
            model.token_embedding.weight.detach().numpy(),
            model.position_embedding.weight.detach().numpy(),
            torch.stack([with_bias(norm) for norm in [*norms, model.final_norm]]).numpy(),
            *matrices([(attention.in_proj_weight, attention.in_proj_bias) for attention, _mlp in blocks], weights),
            *matrices([(attention.out_proj.weight, attention.out_proj.bias) for attention, _mlp in blocks], weights),
            *matrices([(mlp[0].weight, mlp[0].bias) for _attention, mlp in blocks], weights),
            *matrices([(mlp[2].weight, mlp[2].bias) for _attention, mlp in blocks], weights),
            *matrices([(model.head.weight, None)], weights),
        )

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """ids (B, 1), one token a row, are added to the unpadded cache -> the logits (B, V) after them."""
        length = cache.length
        logits = forward(self.weights, ids.numpy()[:, 0], cache.memory.numpy(), length, self.tanh)
        for layer in cache.layers:
            layer.length = length + 1
        return torch.from_numpy(logits)
