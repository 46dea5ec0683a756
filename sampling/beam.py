"""Beam search: the likeliest continuations instead of random ones.

The `width` best texts so far are extended by every token, and the best `width` of all those go on; it is exhaustive
search if the width covers everything, and greedy search at width 1. A text that has ended leaves the beam.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sampler import SlidingWindow


@dataclass(frozen=True)
class Hypothesis:
    """A continuation, and how likely the model finds it."""

    tokens: list[int]
    log_probability: float  # the sum of the model's own log-probabilities of the tokens, in nats

    def score(self, length_penalty: float) -> float:
        """log_probability / len(tokens) ** length_penalty."""
        return self.log_probability / max(1, len(self.tokens)) ** length_penalty


def beam_search(
    window: SlidingWindow,
    max_new_tokens: int,
    ended: Callable[[list[int]], bool],
    length_penalty: float = 1.0,
    suppress_tokens: tuple[int, ...] = (),
) -> list[Hypothesis]:
    """Up to `width` continuations of one prompt, best score first; the window holds the prompt `width` times.

    It follows the beams: history, window and cache. `ended` says of a continuation whether its last token ends it.
    length_penalty 0 compares sums, which favours short texts, 1 means per token. suppress_tokens are left out. Raises
    FloatingPointError if the logits are not finite.
    """
    width = len(window.rows)
    beams = [Hypothesis([], 0.0)]  # the live texts, best first; the window's rows beyond them are idle
    done: list[Hypothesis] = []
    for _ in range(max_new_tokens):
        log_probabilities = window.next_logits()[: len(beams)].double().log_softmax(-1)
        log_probabilities[:, list(suppress_tokens)] = -torch.inf
        totals = torch.tensor([beam.log_probability for beam in beams], dtype=torch.float64)
        candidates = (totals[:, None] + log_probabilities).flatten()  # (beams x V)
        alive: list[tuple[int, Hypothesis]] = []  # parent, text
        for index in candidates.argsort(descending=True).tolist():
            parent, token = divmod(index, log_probabilities.size(1))
            text = Hypothesis([*beams[parent].tokens, token], candidates[index].item())
            if text.log_probability == -torch.inf:  # suppressed, as all that follow
                break
            if ended(text.tokens):
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
