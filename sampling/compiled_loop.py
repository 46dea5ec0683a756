"""`sampler.generate` in plain loops that numba compiles: several tokens at a time, without PyTorch's calls.

The same tokens as there, filter by filter: like the filters of sampler.py these compute in float32, and the
probabilities in float64.
"""

import math
from collections.abc import Iterator

import numba
import numpy as np
import torch
from numba import float32

from sampler import Sampling, SlidingWindow, uniform_numbers
from sampling.compiled_step import forward

compiled = numba.njit(error_model="numpy", cache=True)  # sums in the order that is written, or tokens would differ
WORK = 2**25  # weights to read, in a few milliseconds, before tokens are handed out


@compiled
def nucleus(top, top_p):
    """How many of the numbers, the largest first, have the probability top_p together; at least 1."""
    shares = np.empty(top.shape[0])
    for n in range(top.shape[0]):
        shares[n] = math.exp(float(top[n]) - float(top[0]))
    total, cumulative = shares.sum(), 0.0
    for n in range(top.shape[0]):
        cumulative += shares[n] / total
        if n > 0 and cumulative - shares[n] / total >= top_p:
            return n
    return top.shape[0]


@compiled
def keep_largest(x, top_k, top_p):
    """Reject in x (V,) all but the k largest, and of these all but the likeliest that have the probability top_p."""
    rest = x.shape[0] - top_k
    top = np.sort(np.partition(x, rest)[rest:])[::-1]
    if top_p < 1:
        top = top[: nucleus(top, top_p)]
    least = top[-1]
    spare = np.sum(top == least)  # of equal ones the lower ids stay
    for i in range(x.shape[0]):
        if x[i] == least and spare > 0:
            spare -= 1
        elif x[i] <= least:
            x[i] = -np.inf


@compiled
def sample(x, uniform):
    """The id on which the uniform number falls, when each has its share of softmax(x)."""
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
def choose(x, seen, uniform, temperature, top_k, top_p, floor, penalty):
    """One token for logits x (V,), which are changed. floor: the logarithm of min-p."""
    if penalty != 1:
        for i in range(x.shape[0]):
            if seen[i]:
                x[i] = x[i] / float32(penalty) if x[i] > 0 else x[i] * float32(penalty)
    if temperature == 0:
        return np.argmax(x)
    if temperature != 1:
        x = (x - x.max()) / float32(temperature)
    if top_k < x.shape[0] or top_p < 1:
        keep_largest(x, min(top_k, x.shape[0]), top_p)
    least = x.max() + float32(floor)
    for i in range(x.shape[0]):
        if x[i] < least:
            x[i] = -np.inf
    return sample(x, uniform)


@compiled
def make_tokens(logits, uniforms, w, memory, length, tanh, suppressed, seen, temperature, top_k, top_p, floor, penalty):
    """logits (B, V) and uniforms (N, B) -> the next N tokens (N, B); fewer if logits are not finite.

    The tokens but the last are added to the cache's memory, from slot `length` on, and all of them to seen (B, V).
    """
    chosen = np.empty(uniforms.shape, np.int64)
    for n in range(chosen.shape[0]):
        if n > 0:
            logits = forward(w, chosen[n - 1], memory, length + n - 1, tanh)
        if not np.isfinite(logits.sum()):
            return chosen[:n]
        for b in range(chosen.shape[1]):
            x = logits[b] + suppressed
            chosen[n, b] = choose(x, seen[b], uniforms[n, b], temperature, top_k, top_p, floor, penalty)
            seen[b, chosen[n, b]] = True
    return chosen


def generate(
    window: SlidingWindow,
    max_new_tokens: int,
    generators: list[torch.Generator],
    sampling: Sampling,
    suppress_tokens: tuple[int, ...] = (),
) -> Iterator[list[int]]:
    """As `sampler.generate`, for a window whose step is a CompiledStep."""
    step, cache, vocab_size = window.step, window.cache, window.model.config.vocab_size
    suppressed = np.zeros(vocab_size, np.float32)
    suppressed[list(suppress_tokens)] = -np.inf
    seen = np.zeros((len(window.rows), vocab_size), np.bool_)
    for row, tokens in zip(seen, window.rows, strict=True):
        row[tokens] = True
    uniforms = uniform_numbers(generators)
    floor = math.log(sampling.min_p) if sampling.min_p else -math.inf
    numbers = (float(sampling.temperature), sampling.top_k or vocab_size, float(sampling.top_p), floor)
    numbers += (float(sampling.repetition_penalty),)
    at_once = max(1, WORK // window.model.num_parameters())
    left = max_new_tokens
    while left:
        logits, length = window.next_logits().numpy(), cache.length
        count = 1 if cache.padding is not None else min(at_once, left, window.max_seq - length + 1)
        ahead = np.stack([next(uniforms)[:, 0].numpy() for _ in range(count)])
        memory = cache.memory.numpy()
        chosen = make_tokens(logits, ahead, step.weights, memory, length, step.tanh, suppressed, seen, *numbers)
        left -= len(chosen)
        for number, tokens in enumerate(chosen.tolist()):
            for layer in cache.layers:
                layer.length = length + number  # as if they were made one by one
            window.append(tokens)
            yield tokens
