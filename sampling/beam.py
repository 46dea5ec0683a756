"""Beam search: the likeliest continuations instead of random ones.

The `width` best texts so far are extended by every token, and the best `width` of all those go on; it is exhaustive
search if the width covers everything, and greedy search at width 1. A text that has ended leaves the beam.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sampler import SlidingWindow


@dataclass(frozen=True)
class Hypothesis:
    """A continuation, and how likely the model finds it."""

    tokens: list[int]
    log_probability: float  # the sum of the model's own log-probabilities of the tokens, in nats
    state: Any = field(default=None, compare=False)  # what `follow` knows of the text

    def score(self, length_penalty: float) -> float:
        """log_probability / len(tokens) ** length_penalty."""
        size = math.log(-self.log_probability or math.ulp(0)) - length_penalty * math.log(max(1, len(self.tokens)))
        return -math.exp(size) if size < 700 else -math.inf  # in logarithms, because a power may overflow


def best_first(candidates: Tensor, at_once: int) -> Iterator[tuple[float, int]]:
    """The finite values of `candidates` (N,) with their indices, the largest first; `at_once` are sorted, then more."""
    start, end = 0, min(at_once, len(candidates))
    while start < end:
        best = candidates.topk(end)
        for value, index in zip(best.values[start:].tolist(), best.indices[start:].tolist(), strict=True):
            if value == -math.inf:
                return
            yield value, index
        start, end = end, min(4 * end, len(candidates))


def beam_search(
    window: SlidingWindow,
    max_new_tokens: int,
    width: int,
    length_penalty: float = 1.0,
    suppress_tokens: tuple[int, ...] = (),
    follow: Callable[[Any, int], tuple[Any, bool]] | None = None,
    state: Any = None,
) -> list[Hypothesis]:
    """Up to `width` continuations of one prompt, best score first.

    The window holds the prompt `width` times, and follows the beams: history, window and cache. suppress_tokens are
    left out. length_penalty 0 compares sums, which favours short texts, 1 means per token. `follow` is given what it
    knows of a text, at first `state`, and the text's next token; it returns what it knows then, and whether the text
    has ended; if None, no text ends. Raises FloatingPointError if the logits are not finite.
    """
    if len(window.rows) != width:
        raise ValueError(f"a beam of width {width} needs a window of as many rows, not {len(window.rows)}")
    beams = [Hypothesis([], 0.0, state)]  # the live texts, best first; the window's rows beyond them are idle
    done: list[Hypothesis] = []
    for _ in range(max_new_tokens):
        log_probabilities = window.next_logits()[: len(beams)].double().log_softmax(-1)
        log_probabilities[:, list(suppress_tokens)] = -torch.inf
        totals = torch.tensor([beam.log_probability for beam in beams], dtype=torch.float64)
        candidates = (totals[:, None] + log_probabilities).flatten()  # (beams x V)
        alive: list[tuple[int, Hypothesis]] = []  # parent, text
        for total, index in best_first(candidates, 2 * width):
            parent, token = divmod(index, log_probabilities.size(1))
            known, ended = follow(beams[parent].state, token) if follow else (None, False)
            text = Hypothesis([*beams[parent].tokens, token], total, known)
            if ended:
                done.append(text)
            else:
                alive.append((parent, text))
            if len(alive) == width:
                break
        beams = [text for _, text in alive]
        if not beams:
            break
        idle = width - len(beams)
        window.reorder([parent for parent, _ in alive] + [0] * idle)
        window.append([text.tokens[-1] for text in beams] + [0] * idle)
    return sorted(done + beams, key=lambda text: -text.score(length_penalty))[:width]
