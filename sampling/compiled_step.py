"""Make text with the loops of `kernels.py`: a step for `SlidingWindow`, and a loop like `sampler.generate`.

They need numba (pip install numba) and a CPU. The loops compute the network of `tiny_decoder.py` a second time, so a
step compares itself with the model that it is made for.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

import sampler
from sampler import Sampling, SlidingWindow, row_generators, token_masks, uniform_numbers
from sampling.kernels import forward, make_tokens
from tiny_decoder import KVCache, TinyGPT

BLOCK_WORK = 2**27  # weights x rows x tokens that a thread computes, in some ten milliseconds, before it returns tokens
TOLERANCE = 1e-4  # how far a logit may be from the model's, as a share of the logits' range


class DifferentNetwork(Exception):
    """The loops do not compute what this model computes; the message says why."""


class Weights(NamedTuple):
    """The parameters of the decoder, one array for all layers. A pair has matrices, and the scales and biases of their
    outputs.

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


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (…, out, in) -> whole numbers of the same shape, int8, and the scales (…, out, 1) that multiply them."""
    scale = weight.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def matrices(layers: list[tuple[Tensor, Tensor]], weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, in) and biases of all layers -> (L, out, in) and (L, 2, out), scales and biases."""
    weight, bias = (torch.stack(column) for column in zip(*layers, strict=True))
    scale = torch.ones_like(bias)
    if weights == "int8":
        weight, scale = quantized(weight)
    return weight.numpy(), torch.stack([scale.view_as(bias), bias], dim=1).numpy()


def read_weights(model: TinyGPT, weights: str) -> Weights:
    """The model's parameters; the matrices are rounded if weights is "int8".

    Raises DifferentNetwork if one is missing or has another shape: the loops do not check what they read.
    """
    config, state = model.config, model.state_dict()
    width, vocab_size, layers = config.embed_dim, config.vocab_size, range(config.num_layers)

    def read(name: str, *shape: int) -> Tensor:
        if name not in state or state[name].shape != shape:
            raise DifferentNetwork(f"it has no parameter {name} of the shape {shape}")
        return state[name].contiguous()

    def with_bias(name: str, *shape: int) -> tuple[Tensor, Tensor]:
        return read(f"{name}weight", *shape), state.get(f"{name}bias", torch.zeros(shape[0]))

    def of_all_layers(name: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        return matrices([with_bias(f"blocks.{n}.{name}", *shape) for n in layers], weights)

    norms = [name for n in layers for name in (f"blocks.{n}.attention_norm.", f"blocks.{n}.mlp_norm.")]
    return Weights(
        read("token_embedding.weight", vocab_size, width).numpy(),
        read("position_embedding.weight", config.max_seq, width).numpy(),
        torch.stack([torch.stack(with_bias(name, width)) for name in [*norms, "final_norm."]]).numpy(),
        of_all_layers("attention.in_proj_", 3 * width, width),
        of_all_layers("attention.out_proj.", width, width),
        of_all_layers("mlp.up.", 4 * width, width),
        of_all_layers("mlp.down.", width, 4 * width),
        matrices([with_bias("head.", vocab_size, width)], weights),
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
        length, named = model.config.max_seq, model.named_parameters(remove_duplicate=False)
        to_round = {name: p for name, p in named if rounded and p.ndim == 2 and "embedding" not in name}
        replaced = {name: torch.mul(*quantized(p)) for name, p in to_round.items()}
        ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
        cache, logits = KVCache(model, 1), []
        positions = sorted({length // 4, length // 2, 3 * length // 4, length - 1})
        expected = functional_call(model, replaced, (ids, cache), tie_weights=False)[0, positions]
        for position in positions:
            cache.length = position
            logits.append(self(ids[:, position : position + 1], cache))
        error, value_range = (torch.cat(logits) - expected).abs().max(), expected.max() - expected.min()
        # Damaged weights are not another formula: sampling reports logits that are not finite.
        if expected.isfinite().all() and not error <= max(TOLERANCE * value_range, 1e-6):
            raise DifferentNetwork(f"its logits differ by {error / value_range:.2%} of their range")

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
    """As `sampler.generate`, for a window whose step is a CompiledStep. With `watch` it is that slower loop."""
    if watch:
        yield from sampler.generate(window, max_new_tokens, generators, sampling, suppress_tokens, watch)
        return
    step, cache = window.step, window.cache
    suppressed, seen = (mask.numpy() for mask in token_masks(window, suppress_tokens))
    uniforms = uniform_numbers(generators)
    filters = filter_numbers(sampling, len(suppressed))
    rows = math.ceil(len(window.rows) / torch.get_num_threads())
    block = max(1, BLOCK_WORK // (window.model.num_parameters() * rows))  # tokens
    remaining = max_new_tokens

    def make(first: int, logits: np.ndarray, numbers: np.ndarray, padding: np.ndarray, seen: np.ndarray) -> np.ndarray:
        state = (step.weights, cache.memory.numpy(), padding, first, cache.length, step.tanh)
        return make_tokens(logits, numbers, *state, suppressed, seen, *filters)

    while remaining:
        logits, length = window.next_logits().numpy(), cache.length
        count = min(block, remaining, window.max_seq - length + 1)
        numbers = np.concatenate([next(uniforms).numpy() for _ in range(count)], axis=1)  # (B, count)
        parts = step.share(make, logits, numbers, padding_of(cache), seen)
        chosen = np.concatenate([part[: min(map(len, parts))] for part in parts], axis=1)
        remaining -= len(chosen)
        for number, tokens in enumerate(chosen.tolist()):
            cache.length = length + number  # as if the tokens were made one by one
            window.append(tokens)
            yield tokens
