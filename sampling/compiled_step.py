"""Make text with the loops of `kernels.py`: a step for `SlidingWindow`, and a loop like `sampler.generate`.

They need numba (pip install numba) and a CPU. The loops compute the network of `tiny_decoder.py` a second time, so a
step compares itself with the model that it is made for.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from sampler import Sampling, SlidingWindow, row_generators, token_masks, uniform_numbers
from sampling.kernels import forward, make_tokens
from tiny_decoder import KVCache, TinyGPT

BLOCK_WORK = 2**27  # weights x rows x tokens that a thread computes, in some ten milliseconds, before it returns tokens
TOLERANCE = 1e-4  # how far a logit may be from the model's, as a share of the logits' range


class DifferentNetwork(RuntimeError):
    """The loops do not compute what this model computes; the message says by what they differ."""


class Weights(NamedTuple):
    """The parameters of the decoder, one array for all layers. A pair has weights, and the scales and biases of their
    outputs. Matrices are float32 or int8; what is float32 has scales of 1.
    """

    tokens: np.ndarray  # (V, C)
    positions: np.ndarray  # (S, C)
    norms: tuple[np.ndarray, np.ndarray]  # (N, C) and (N, 2, C) of N = 2 L + 1, in the order in which they are used
    qkv: tuple[np.ndarray, np.ndarray]  # (L, 3C, C) and (L, 2, 3C)
    out: tuple[np.ndarray, np.ndarray]  # (L, C, C) and (L, 2, C)
    up: tuple[np.ndarray, np.ndarray]  # (L, 4C, C) and (L, 2, 4C)
    down: tuple[np.ndarray, np.ndarray]  # (L, C, 4C) and (L, 2, C)
    head: tuple[np.ndarray, np.ndarray]  # (1, V, C) and (1, 2, V)


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (…, out, in) -> whole numbers of the same shape, int8, and the scales (…, out, 1) that multiply them."""
    scale = weight.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def read_weights(model: TinyGPT, weights: str) -> Weights:
    """The model's parameters; the matrices are rounded if weights is "int8".

    Raises DifferentNetwork if one is missing or has another shape: the loops do not check what they read.
    """
    config, state = model.config, model.state_dict()
    width, blocks = config.embed_dim, [f"blocks.{n}." for n in range(config.num_layers)]

    def read(name: str, *shape: int) -> Tensor:
        if name not in state or state[name].shape != shape:
            raise DifferentNetwork(f"this network has no parameter {name} of the shape {shape}")
        return state[name]

    def stacked(names: list[str], *shape: int) -> tuple[np.ndarray, np.ndarray]:
        weight = torch.stack([read(f"{name}weight", *shape) for name in names])
        bias = torch.stack([state.get(f"{name}bias", torch.zeros(shape[0])) for name in names])
        scale = torch.ones_like(bias)
        if weights == "int8" and len(shape) == 2:
            weight, scale = quantized(weight)
        return weight.numpy(), torch.stack([scale.view_as(bias), bias], dim=1).numpy()

    norms = [block + name for block in blocks for name in ("attention_norm.", "mlp_norm.")]
    return Weights(
        read("token_embedding.weight", config.vocab_size, width).numpy(),
        read("position_embedding.weight", config.max_seq, width).numpy(),
        stacked([*norms, "final_norm."], width),
        stacked([f"{block}attention.in_proj_" for block in blocks], 3 * width, width),
        stacked([f"{block}attention.out_proj." for block in blocks], width, width),
        stacked([f"{block}mlp.up." for block in blocks], 4 * width, width),
        stacked([f"{block}mlp.down." for block in blocks], width, 4 * width),
        stacked(["head."], config.vocab_size, width),
    )


class CompiledStep:
    """To be given to `sampler.SlidingWindow` as `step`, on a CPU. It keeps a copy of the blocks' weights."""

    def __init__(self, model: TinyGPT, weights: str = "float32"):
        """weights: "float32" or "int8". Raises DifferentNetwork if the loops do not compute what the model computes."""
        self.tanh = model.config.gelu == "tanh"
        self.weights = read_weights(model, weights)
        self.pool = ThreadPoolExecutor(torch.get_num_threads())
        self.compare(model.eval(), rounded=weights == "int8")
        # One token loads or compiles the rest of the loops here, so that a measurement of speed does not include that.
        list(generate(SlidingWindow(model, [[0]], step=self), 1, row_generators(0, 1), Sampling()))

    @torch.inference_mode()
    def compare(self, model: TinyGPT, rounded: bool) -> None:
        """Raise DifferentNetwork if the loops' logits are not the model's, on a full window of random ids.

        The model reads the window. The loops compute its last token and three earlier ones again, each with the cache
        of the tokens before it. rounded: compare with a model of the rounded matrices, so that only the formula counts.
        """
        last, named = model.config.max_seq - 1, model.named_parameters(remove_duplicate=False)
        to_round = {name: p for name, p in named if rounded and p.ndim == 2 and "embedding" not in name}
        replaced = {name: torch.mul(*quantized(p)) for name, p in to_round.items()}
        ids = torch.randint(model.config.vocab_size, (1, last + 1), generator=torch.Generator().manual_seed(0))
        cache = KVCache(model, 1)
        logits = functional_call(model, replaced, (ids, cache), tie_weights=False)[0]
        for position in sorted({last // 4, last // 2, 3 * last // 4, last}):
            cache.length, expected = position, logits[position]
            error = (self(ids[:, position : position + 1], cache) - expected).abs().max()
            value_range = expected.max() - expected.min()
            # Damaged weights are not another formula: sampling reports logits that are not finite.
            if expected.isfinite().all() and not error <= max(TOLERANCE * value_range, 1e-6):
                raise DifferentNetwork(f"this network's logits differ by {error / value_range:.2%} of their range")

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """ids (B, 1), one token per row, are added to the cache -> the logits (B, V) after them."""

        def step(first: int, tokens: np.ndarray, padding: np.ndarray) -> np.ndarray:
            return forward(self.weights, tokens, cache.memory.numpy(), padding, first, cache.length, self.tanh)

        logits = self.share(step, ids.numpy()[:, 0], padding_of(cache))
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


def padding_of(cache: KVCache) -> np.ndarray:
    """How many slots at the left of each row hold no token (B,)."""
    return np.zeros(cache.memory.size(2), np.int64) if cache.padding is None else cache.padding.numpy()


def generate(
    window: SlidingWindow,
    max_new_tokens: int,
    generators: list[torch.Generator],
    sampling: Sampling,
    suppress_tokens: tuple[int, ...] = (),
) -> Iterator[list[int]]:
    """As `sampler.generate`, without `watch`, for a window whose step is a CompiledStep.

    Tokens are made a block at a time, so a window that is left in the middle of a text cannot be used further.
    """
    step, cache = window.step, window.cache
    suppressed, seen = (mask.numpy() for mask in token_masks(window, suppress_tokens))
    uniforms = uniform_numbers(generators)
    filters = tuple(map(float, astuple(sampling)))  # always of one type, for which numba compiles once
    rows = math.ceil(len(window.rows) / torch.get_num_threads())
    block = max(1, BLOCK_WORK // (window.model.num_parameters() * rows))  # tokens
    remaining = max_new_tokens

    def make(first: int, logits: np.ndarray, numbers: np.ndarray, padding: np.ndarray, seen: np.ndarray) -> np.ndarray:
        state = (step.weights, cache.memory.numpy(), padding, first, cache.length, step.tanh)
        return make_tokens(logits, numbers, *state, suppressed, seen, *filters)

    while remaining:
        logits = window.next_logits().numpy()
        count = min(block, remaining, window.max_seq - cache.length + 1)
        numbers = np.concatenate([next(uniforms).numpy() for _ in range(count)], axis=1)  # (B, count)
        parts = step.share(make, logits, numbers, padding_of(cache), seen)
        chosen = np.concatenate([part[: min(map(len, parts))] for part in parts], axis=1)
        remaining -= len(chosen)
        cache.length += len(chosen) - 1  # the last one is fed by next_logits
        for tokens in chosen.tolist():
            window.append(tokens)
            yield tokens
