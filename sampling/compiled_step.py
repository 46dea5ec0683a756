"""Making text with the loops of `kernels.py`: a step for `SlidingWindow`, and a loop like `sampler.generate`.

They need numba (pip install numba) and a CPU.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import sampler
from sampler import Sampling, SlidingWindow, row_generators, token_masks, uniform_numbers
from sampling.kernels import forward, make_tokens
from tiny_decoder import KVCache, TinyGPT

WORK = 2**27  # weights x rows of a thread, which take some ten milliseconds, before tokens are handed out


class Weights(NamedTuple):
    """All that the decoder knows, one array for all layers. A pair is of matrices and their outputs' scales and biases.

    The matrices are float32 or int8.
    """

    tokens: np.ndarray  # (V, C)
    positions: np.ndarray  # (S, C)
    norms: np.ndarray  # (2 L + 1, 2, C): weight and bias, in the order in which they are used
    qkv: tuple[np.ndarray, np.ndarray]  # (L, 3C, C) and (L, 2, 3C)
    out: tuple[np.ndarray, np.ndarray]  # (L, C, C) and (L, 2, C)
    up: tuple[np.ndarray, np.ndarray]  # (L, 4C, C) and (L, 2, 4C)
    down: tuple[np.ndarray, np.ndarray]  # (L, C, 4C) and (L, 2, C)
    head: tuple[np.ndarray, np.ndarray]  # (1, V, C) and (1, 2, V)


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
            model.token_embedding.weight.detach().contiguous().numpy(),
            model.position_embedding.weight.detach().contiguous().numpy(),
            torch.stack([with_bias(norm) for norm in [*norms, model.final_norm]]).numpy(),
            matrices([(attention.in_proj_weight, attention.in_proj_bias) for attention, _mlp in blocks], weights),
            matrices([(attention.out_proj.weight, attention.out_proj.bias) for attention, _mlp in blocks], weights),
            matrices([(mlp.up.weight, mlp.up.bias) for _attention, mlp in blocks], weights),
            matrices([(mlp.down.weight, mlp.down.bias) for _attention, mlp in blocks], weights),
            matrices([(model.head.weight, None)], weights),
        )
        self.pool = ThreadPoolExecutor(torch.get_num_threads())
        # One token loads or compiles the loops here, so that whoever times a text does not time that.
        list(generate(SlidingWindow(model, [[0]], step=self), 1, row_generators(0, 1), Sampling()))

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """ids (B, 1), one token a row, are added to the unpadded cache -> the logits (B, V) after them."""

        def step(first: int, tokens: np.ndarray) -> np.ndarray:
            return forward(self.weights, tokens, cache.memory.numpy(), first, cache.length, self.tanh)

        logits = self.share(step, ids.numpy()[:, 0])
        cache.length += 1
        return torch.from_numpy(np.concatenate(logits))

    def share(self, task: Callable[..., np.ndarray], *arrays: np.ndarray) -> list[np.ndarray]:
        """Cut the rows of the arrays into one part per thread, and call task(first, *parts) for each, where `first` is
        the number of the part's first row. Returns the results in order.

        The compiled loops release Python's lock, so the threads run at the same time. A row gets the same bits in
        whichever part it is.
        """
        rows, threads = len(arrays[0]), min(torch.get_num_threads(), len(arrays[0]))
        bounds = pairwise(rows * n // threads for n in range(threads + 1))
        parts = [(first, *(array[first:end] for array in arrays)) for first, end in bounds]
        return [task(*parts[0])] if threads == 1 else list(self.pool.map(task, *zip(*parts, strict=True)))


def filter_numbers(sampling: Sampling, vocab_size: int) -> tuple[float, int, float, float, float]:
    """The last arguments of `kernels.choose`."""
    floor = math.log(sampling.min_p) if sampling.min_p else -math.inf
    top_k, top_p = sampling.top_k or vocab_size, float(sampling.top_p)
    return float(sampling.temperature), top_k, top_p, floor, float(sampling.repetition_penalty)


def generate(
    window: SlidingWindow,
    max_new_tokens: int,
    generators: list[torch.Generator],
    sampling: Sampling,
    suppress_tokens: tuple[int, ...] = (),
    watch: Callable | None = None,
) -> Iterator[list[int]]:
    """As `sampler.generate`, for a window whose step is a CompiledStep; only `watch` needs that slower loop itself."""
    if watch:
        yield from sampler.generate(window, max_new_tokens, generators, sampling, suppress_tokens, watch)
        return
    step, cache = window.step, window.cache
    suppressed, seen = (mask.numpy() for mask in token_masks(window, suppress_tokens))
    uniforms = uniform_numbers(generators)
    filters = filter_numbers(sampling, len(suppressed))
    rows = math.ceil(len(window.rows) / torch.get_num_threads())
    at_once = max(1, WORK // (window.model.num_parameters() * rows))
    left = max_new_tokens

    def make(first: int, logits: np.ndarray, ahead: np.ndarray, seen: np.ndarray) -> np.ndarray:
        place = (first, cache.length, step.tanh, suppressed)
        return make_tokens(logits, ahead, step.weights, cache.memory.numpy(), *place, seen, *filters)

    while left:
        logits, length = window.next_logits().numpy(), cache.length
        count = 1 if cache.padding is not None else min(at_once, left, window.max_seq - length + 1)
        ahead = np.concatenate([next(uniforms).numpy() for _ in range(count)], axis=1)  # (B, count)
        parts = step.share(make, logits, ahead, seen)
        chosen = np.concatenate([part[: min(map(len, parts))] for part in parts], axis=1)
        left -= len(chosen)
        for number, tokens in enumerate(chosen.tolist()):
            cache.length = length + number  # as if they were made one by one
            window.append(tokens)
            yield tokens
