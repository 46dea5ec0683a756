"""Choosing the next token in plain loops that numba compiles: `sampler.choose` without PyTorch's calls."""

import math

import numba
import numpy as np
from numba import float32
from torch import Tensor

from sampler import Sampling

compiled = numba.njit(error_model="numpy", cache=True)


@compiled
def penalize(x, seen, penalty):
    """x and seen (B, V) -> a new x: `sampler.penalize_repetition`."""
    y = np.empty_like(x)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            y[b, i] = x[b, i]
            if seen[b, i]:
                y[b, i] = x[b, i] / float32(penalty) if x[b, i] > 0 else x[b, i] * float32(penalty)
    return y


@compiled
def nucleus(ordered, top_p):
    """How many of the numbers, the largest first, have the probability top_p together; at least 1."""
    shares = np.empty(ordered.shape[0])
    for n in range(ordered.shape[0]):
        shares[n] = math.exp(float(ordered[n]) - float(ordered[0]))
    total, cumulative = shares.sum(), 0.0
    for n in range(ordered.shape[0]):
        cumulative += shares[n] / total
        if n > 0 and cumulative - shares[n] / total >= top_p:
            return n
    return ordered.shape[0]


@compiled
def keep_largest(x, ordered):
    """Reject in x (V,) what is not among `ordered`, its largest numbers; of equal ones the lower ids stay."""
    least = ordered[-1]
    spare = np.sum(ordered == least)
    for i in range(x.shape[0]):
        if x[i] == least and spare > 0:
            spare -= 1
        elif x[i] <= least:
            x[i] = -np.inf


@compiled
def sample(x, uniform):
    """The id on which the uniform number falls, when each has its share of softmax(x), in float64."""
    largest, cumulative, last = float(x.max()), 0.0, 0
    shares = np.empty(x.shape[0])
    for i in range(x.shape[0]):
        shares[i] = math.exp(float(x[i]) - largest)
    shares /= shares.sum()
    target = uniform * shares.sum()
    for i in range(x.shape[0]):
        if shares[i] > 0:
            cumulative, last = cumulative + shares[i], i
        if cumulative > target:
            break
    return last


@compiled
def choose_rows(logits, ordered, uniforms, temperature, top_k, top_p, floor):
    """logits (B, V), uniforms (B, 1) -> ids (B,). ordered: the logits from the smallest to the largest, if needed.

    floor: the logarithm of min-p. The filters are those of sampler.py, and like them compute in float32.
    """
    chosen = np.empty(logits.shape[0], np.int64)
    for b in range(logits.shape[0]):
        largest = logits[b].max()
        if temperature == 0:
            chosen[b] = np.argmax(logits[b])
            continue
        x, top = logits[b].copy(), ordered[b, ::-1][: int(top_k)].copy()
        if temperature != 1:
            x, top = (x - largest) / float32(temperature), (top - largest) / float32(temperature)
        if top_k < x.shape[0] or top_p < 1:
            keep_largest(x, top[: nucleus(top, top_p)] if top_p < 1 else top)
        least = x.max() + float32(floor)
        for i in range(x.shape[0]):
            if x[i] < least:
                x[i] = -np.inf
        chosen[b] = sample(x, uniforms[b, 0])
    return chosen


def choose(logits: Tensor, seen: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[list[int], list]:
    """As `sampler.choose`, without the outcomes of the filters."""
    x, top_k = logits.numpy(), sampling.top_k or logits.size(1)
    if sampling.repetition_penalty != 1:
        x = penalize(x, seen.numpy(), sampling.repetition_penalty)
    ordered = np.sort(x) if top_k < x.shape[1] or sampling.top_p < 1 else x[:, :0]
    floor = math.log(sampling.min_p) if sampling.min_p else -math.inf
    numbers = sampling.temperature, float(top_k), float(sampling.top_p), floor
    return choose_rows(x, ordered, uniforms.numpy(), *map(float, numbers)).tolist(), []
