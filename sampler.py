"""How a trained model makes text: the sliding window, filters on logits (B, V), and the loop that samples
(sampling/compiled_step.py has a compiled twin).

The order of the filters is fixed: repetition penalty, temperature, top-k, top-p, min-p. A filter sets what it rejects
to -inf; softmax then shares the probability among the rest.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tiny_decoder import KVCache, TinyGPT

# --- The window --------------------------------------------------------------------------------------------------


class SlidingWindow:
    """A model reading a batch of texts that grow by one token per row at a time.

    Every row has a window of at most max_seq tokens. While all have room, the cache answers for the tokens before the
    last. A full window must drop `stride` tokens at its left end to take one more; all its positions, and with them
    all keys, change, so it is read anew. With stride 1 that is the exact sliding window, and every further token costs
    a whole window; with stride H only every H-th token does, and the model sees max_seq - H + 1 to max_seq tokens.
    """

    def __init__(
        self,
        model: TinyGPT,
        prompts: list[list[int]],
        stride: int | None = None,
        step: Callable[[Tensor, KVCache], Tensor] | None = None,
    ):
        """prompts: the token ids of each row, at least one, of any lengths. stride: half of max_seq if None.

        step: a faster way to feed one token (B, 1) to every row of the cache, returning the logits (B, V).
        Raises ValueError for an empty prompt, an id outside the vocabulary, or a stride outside 1 … max_seq.
        """
        self.max_seq, vocab_size = model.config.max_seq, model.config.vocab_size
        self.stride = max(1, self.max_seq // 2) if stride is None else stride
        if not 1 <= self.stride <= self.max_seq:
            raise ValueError(f"--stride must be from 1 to the model's window of {self.max_seq} tokens, not {stride}")
        if not prompts or not all(prompts):
            raise ValueError("every prompt needs at least one token")
        if not all(0 <= token < vocab_size for prompt in prompts for token in prompt):
            raise ValueError(f"a token id is outside the vocabulary of {vocab_size} tokens")
        self.model = model.eval()
        self.step = step
        self.device = model.position_embedding.weight.device
        self.rows = [list(prompt) for prompt in prompts]
        self.starts = [max(0, len(row) - self.max_seq) for row in self.rows]  # where each row's window begins
        self.cache = KVCache(model, len(prompts))
        self.unread = True  # whether the cache must be filled anew

    def next_logits(self) -> Tensor:
        """Logits (B, V), float32, after the last token of every row; call it once per `append`.

        Raises FloatingPointError if they are not finite. They come on the CPU: choosing among so few numbers is no
        work, and takes float64, which not every device has.
        """
        for b, row in enumerate(self.rows):
            if len(row) - self.starts[b] > self.max_seq:
                self.starts[b] = len(row) - self.max_seq - 1 + self.stride
                self.unread = True
        ids = self.windows() if self.unread else torch.tensor([row[-1:] for row in self.rows], device=self.device)
        if self.step is not None and ids.size(1) == 1:
            logits = self.step(ids, self.cache)
        else:
            with torch.inference_mode():
                logits = self.model(ids, self.cache, last_only=True)[:, 0]
        logits = logits.float().cpu()
        if not math.isfinite(logits.sum(dtype=torch.float64).item()):
            raise FloatingPointError("the model gave logits that are not finite: its weights are damaged")
        return logits

    def windows(self) -> Tensor:
        """Every row's window, padded on the left: ids (B, T), with which to fill the cache anew."""
        windows = [row[start:] for row, start in zip(self.rows, self.starts, strict=True)]
        longest = max(map(len, windows))
        self.cache.clear([longest - len(window) for window in windows])
        self.unread = False
        return torch.tensor([[0] * (longest - len(window)) + window for window in windows], device=self.device)

    def append(self, tokens: list[int]) -> None:
        """Add one token to every row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was, history, window and cache."""
        self.rows = [list(self.rows[row]) for row in rows]
        self.starts = [self.starts[row] for row in rows]
        self.cache.reorder(rows)


# --- Filters: logits (B, V) -> logits (B, V) -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the values below switch everything off: the model's own distribution."""

    temperature: float = 1.0  # 0 is greedy: always the likeliest token
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


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


# --- Sampling ----------------------------------------------------------------------------------------------------


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


def sample(probabilities: Tensor, uniforms: Tensor) -> list[int]:
    """One token per row of probabilities (B, V), float64: where uniforms (B, 1) fall on the cumulative distribution."""
    cumulative = probabilities.cumsum(-1)
    # right=True: a token of probability zero spans no part of the line, so it is never chosen.
    chosen = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # u * total can round up to the total: then the last token that has any probability is meant.
    return torch.minimum(chosen, cumulative.argmax(-1, keepdim=True))[:, 0].tolist()


def token_masks(window: SlidingWindow, suppress_tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What to add to the logits, (V,), -inf at suppress_tokens, and which tokens each row's text holds, (B, V)."""
    suppressed = torch.zeros(window.model.config.vocab_size)
    suppressed[list(suppress_tokens)] = -torch.inf
    seen = torch.zeros(len(window.rows), len(suppressed), dtype=torch.bool)
    for row, tokens in zip(seen, window.rows, strict=True):
        row[tokens] = True
    return suppressed, seen


def generate(
    window: SlidingWindow,
    max_new_tokens: int,
    generators: list[torch.Generator],
    sampling: Sampling,
    suppress_tokens: tuple[int, ...] = (),
    watch: Callable[[list[tuple[str, Tensor]], list[int]], None] | None = None,
) -> Iterator[list[int]]:
    """Yield, max_new_tokens times, the next token of every row: a list of B ids, which the window's rows grow by.

    generators: one per row. suppress_tokens (the special ones) are never sampled. `watch` is shown each step: the
    outcomes of the filters and the tokens sampled. Raises FloatingPointError if the logits are not finite.
    """
    suppressed, seen = token_masks(window, suppress_tokens)
    uniforms = uniform_numbers(generators)
    for _ in range(max_new_tokens):
        stages = filter_stages(window.next_logits() + suppressed, seen, sampling)
        chosen = sample(stages[-1][1].double().softmax(-1), next(uniforms))
        if watch:
            watch(stages, chosen)
        window.append(chosen)
        seen[range(len(chosen)), chosen] = True
        yield chosen
