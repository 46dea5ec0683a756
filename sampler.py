"""How a trained model makes text: filters on logits (B, V), and the one decode loop that every command samples with.

The order of the filters is fixed: repetition penalty, temperature, top-k, top-p, min-p. A filter sets what it rejects
to -inf; softmax then shares the probability among the rest.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sampling.decode import Reader


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the values below switch everything off: the model's own distribution."""

    temperature: float = 1.0  # 0 is greedy: always the likeliest token
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


# --- Filters: logits (B, V) -> logits (B, V) -----------------------------------------------------------------------


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of seen tokens by the penalty and multiply the negative ones: less likely both times.

    seen (B, V) is True for every token of the text so far, prompt included. CTRL (Keskar et al. 2019), section 4.1.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Scale the distances to the largest logit by 1 / temperature; at 0 only the first of the largest stays."""
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
    # Subtracting the maximum first keeps a tiny temperature from overflowing; softmax does not care otherwise.
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest; of equal ones the lower ids first, so that exactly k stay. k above V keeps all."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[:, k:], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest of the likeliest tokens whose probabilities sum to at least p, and always one.

    Nucleus sampling (Holtzman et al. 2019).
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the mass of the tokens ahead of this one
    before[:, 0] = 0
    rejected = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(rejected, -torch.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens that are at least min_p times as likely as the likeliest (Nguyen et al. 2024)."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -torch.inf)


def filter_stages(logits: Tensor, seen: Tensor | None, sampling: Sampling) -> list[tuple[str, Tensor]]:
    """What each filter that is switched on makes of logits (B, V), in order, by name; first the logits themselves.

    seen: see `penalize_repetition`.
    """
    stages = [("model", logits)]
    penalty = sampling.repetition_penalty
    for name, wanted, apply in (
        ("penalty", penalty != 1, lambda x: penalize_repetition(x, seen, penalty)),
        ("temperature", sampling.temperature != 1, lambda x: apply_temperature(x, sampling.temperature)),
        ("top-k", 0 < sampling.top_k < logits.size(-1), lambda x: keep_top_k(x, sampling.top_k)),
        ("top-p", sampling.top_p < 1, lambda x: keep_top_p(x, sampling.top_p)),
        ("min-p", sampling.min_p > 0, lambda x: keep_min_p(x, sampling.min_p)),
    ):
        if wanted:
            stages.append((name, apply(stages[-1][1])))
    return stages


# --- Drawing -----------------------------------------------------------------------------------------------------


def row_generators(seed: int, count: int) -> list[torch.Generator]:
    """One random generator per row of a batch: row i draws what a batch of one with seed + i would draw.

    They are separate from torch's global generator, so a seed gives the same text whatever else drew numbers.
    """
    return [torch.Generator().manual_seed((seed + row) % 2**63) for row in range(count)]


def uniform_numbers(generators: list[torch.Generator], ahead: int = 64) -> Iterator[Tensor]:
    """Endless columns (B, 1) of uniform numbers from [0, 1), each row from its own generator, `ahead` at a time."""
    while True:
        block = [torch.rand(ahead, 1, generator=generator, dtype=torch.float64) for generator in generators]
        yield from torch.stack(block, dim=1)


def draw(probabilities: Tensor, uniforms: Tensor) -> list[int]:
    """One token per row of probabilities (B, V), float64: where uniforms (B, 1) fall on the cumulative distribution."""
    cumulative = probabilities.cumsum(-1)
    # right=True: a token of probability zero spans no part of the line, so it is never chosen.
    chosen = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # u * total can round up to the total: then the last token that has any probability is meant.
    return torch.minimum(chosen, cumulative.argmax(-1, keepdim=True))[:, 0].tolist()


# --- The loop ----------------------------------------------------------------------------------------------------


def generate(
    reader: Reader,
    max_new_tokens: int,
    generators: list[torch.Generator],
    sampling: Sampling,
    never: tuple[int, ...] = (),
    watch: Callable[[list[tuple[str, Tensor]], list[int]], None] | None = None,
) -> Iterator[list[int]]:
    """Yield, max_new_tokens times, the next token of every row: a list of B ids, which the reader's rows grow by.

    generators: one per row. Tokens in `never` (the special ones) are never drawn. `watch` is shown each step: the
    outcomes of the filters and the tokens drawn. Raises FloatingPointError if the logits are not finite.
    """
    banned = torch.zeros(reader.model.config.vocab_size)
    banned[list(never)] = -torch.inf
    seen = seen_tokens(reader) if sampling.repetition_penalty != 1 else None
    uniforms = uniform_numbers(generators)
    for _ in range(max_new_tokens):
        stages = filter_stages(reader.next_logits() + banned, seen, sampling)
        chosen = draw(stages[-1][1].double().softmax(-1), next(uniforms))
        if watch:
            watch(stages, chosen)
        reader.append(chosen)
        if seen is not None:
            seen[range(len(chosen)), chosen] = True
        yield chosen


def seen_tokens(reader: Reader) -> Tensor:
    """Which tokens each row's text holds so far: (B, V), bool."""
    seen = torch.zeros(len(reader.rows), reader.model.config.vocab_size, dtype=torch.bool)
    for row, tokens in zip(seen, reader.rows, strict=True):
        row[tokens] = True
    return seen
