"""Beam search: the likeliest continuations instead of random ones.

The `width` best texts so far are extended by every token, and the best `width` of all those go on; it is exhaustive
search if the width covers everything, and greedy search at width 1. A text that `finished` recognises leaves the beam.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sampler import SlidingWindow


@dataclass(frozen=True)
class Hypothesis:
    """A continuation, and how likely the model finds it."""

    tokens: list[int]
    log_probability: float  # the sum of the model's own log-probabilities of the tokens, in nats
    score: float  # log_probability / len(tokens) ** length_penalty


def beam_search(
    window: SlidingWindow,
    max_new_tokens: int,
    width: int,
    length_penalty: float = 1.0,
    suppress_tokens: tuple[int, ...] = (),
    finished: Callable[[list[int]], bool] = lambda tokens: False,
) -> list[Hypothesis]:
    """Up to `width` continuations of one prompt, best score first.

    The window holds the prompt `width` times, and follows the beams: history, window and cache. suppress_tokens are
    left out. length_penalty 0 compares sums, which favours short texts, 1 means per token. Raises FloatingPointError
    if the logits are not finite.
    """
    if len(window.rows) != width:
        raise ValueError(f"a beam of width {width} needs a window of as many rows, not {len(window.rows)}")

    def hypothesis(tokens: list[int], total: float) -> Hypothesis:
        return Hypothesis(tokens, total, total / max(1, len(tokens)) ** length_penalty)

    beams: list[list[int]] = [[]]  # the live texts, best first; the window's rows beyond them are idle
    totals = torch.zeros(1, dtype=torch.float64)
    done: list[Hypothesis] = []
    for _ in range(max_new_tokens):
        log_probabilities = window.next_logits()[: len(beams)].double().log_softmax(-1)
        log_probabilities[:, list(suppress_tokens)] = -torch.inf
        candidates = (totals[:, None] + log_probabilities).flatten()  # (beams x V)
        best = candidates.topk(min(2 * width, len(candidates)))  # twice the width, as some of them may be finished
        alive: list[tuple[int, list[int], float]] = []  # parent, tokens, total
        for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            parent, token = divmod(place, log_probabilities.size(1))
            tokens = [*beams[parent], token]
            if total == -math.inf or len(alive) == width:
                break
            if finished(tokens):
                done.append(hypothesis(tokens, total))
            else:
                alive.append((parent, tokens, total))
        beams = [tokens for _parent, tokens, _total in alive]
        totals = torch.tensor([total for _parent, _tokens, total in alive], dtype=torch.float64)
        if not beams:
            break
        idle = width - len(beams)
        window.reorder([parent for parent, _tokens, _total in alive] + [0] * idle)
        window.append([tokens[-1] for tokens in beams] + [0] * idle)
    done += [hypothesis(tokens, total) for tokens, total in zip(beams, totals.tolist(), strict=True)]
    return sorted(done, key=lambda found: -found.score)[:width]
