"""How a trained model makes text: the loop that samples, the filters on its logits (B, V), then the sliding window.

The order of the filters is fixed: repetition penalty, temperature, top-k, top-p, min-p. A filter sets what it rejects
to -inf, because softmax makes that probability 0 and shares the rest out among the others.

Why sample at all? The likeliest text is dull and repeats itself, while people often choose a less likely word; but the
model's long tail of unlikely tokens holds mistakes, so it is cut (Holtzman et al. 2019, "The Curious Case of Neural
Text Degeneration"). sampling/compiled_step.py has a compiled twin of the loop and the filters, which a change here does
not reach: `--engine torch` shows it.
"""

from __future__ import annotations  # the loop stands before the classes that its signature names

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sampling.text_stream import decode_documents, suppressed
from tiny_decoder import KVCache, TinyGPT
from tokenizer import Tokenizer

TEMPERATURE = 0.8  # of every command, unless it is told another

# --- The loop ----------------------------------------------------------------------------------------------------


def generate(
    window: SlidingWindow,
    max_new_tokens: int,
    generators: list[torch.Generator],
    sampling: Sampling,
    suppress_tokens: tuple[int, ...] = (),
    watch: Callable[[list[tuple[str, Tensor]], list[int]], None] | None = None,
) -> Iterator[list[int]]:
    """Yield, max_new_tokens times, the next token of every row: a list of B ids; each is appended to its row.

    generators: one per row. suppress_tokens (the special ones) are never sampled. `watch` is shown each step: the
    outcomes of the filters and the tokens sampled. Raises FloatingPointError if the logits are not finite.
    """
    suppressed, seen = token_masks(window, suppress_tokens)
    uniforms = uniform_numbers(generators)
    for _ in range(max_new_tokens):
        logits = window.next_logits() + suppressed  # (B, V)
        stages = filter_stages(logits, seen, sampling)
        probabilities = stages[-1][1].double().softmax(-1)
        tokens = sample(probabilities, next(uniforms))
        if watch:
            watch(stages, tokens)
        window.append(tokens)
        seen[range(len(tokens)), tokens] = True
        yield tokens


def sample(probabilities: Tensor, uniforms: Tensor) -> list[int]:
    """One token per row of probabilities (B, V), float64: where uniforms (B, 1) fall on the cumulative distribution.

    Laid end to end, the probabilities fill a line; a point anywhere on it hits each token as often as its probability
    says (inverse transform sampling: Devroye 1986, "Non-Uniform Random Variate Generation", chapter 3).
    """
    cumulative = probabilities.cumsum(-1)
    # right=True: a token of probability zero spans no part of the line, so it is never sampled.
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # Rounding can push the point to the end of the line: then take the last token whose probability is above 0.
    return torch.minimum(tokens, cumulative.argmax(-1, keepdim=True))[:, 0].tolist()


def row_generators(seed: int, count: int) -> list[torch.Generator]:
    """One random generator per row of a batch: row i samples what a batch of one with seed + i would sample.

    They are separate from torch's global generator, so a seed gives the same text whatever else uses that one.
    """
    return [torch.Generator().manual_seed((seed + row) % 2**63) for row in range(count)]


def uniform_numbers(generators: list[torch.Generator], ahead: int = 64) -> Iterator[Tensor]:
    """Endless columns (B, 1) of uniform numbers from [0, 1), each row from its own generator, `ahead` at a time."""
    while True:
        block = [torch.rand(ahead, 1, generator=generator, dtype=torch.float64) for generator in generators]
        yield from torch.stack(block, dim=1)


def sample_text(model: TinyGPT, tokenizer: Tokenizer, prompt: str = "", length: int = 120, seed: int = 0) -> str:
    """The prompt and the `length` tokens that the model writes after it; a document that ends is followed by others.

    Raises like SlidingWindow and `generate`.
    """
    window = SlidingWindow(model, [tokenizer.encode(prompt) or [tokenizer.start_id]])
    steps = generate(window, length, row_generators(seed, 1), Sampling(TEMPERATURE), suppressed(tokenizer))
    return prompt + decode_documents(tokenizer, [token for (token,) in steps])


def token_masks(window: SlidingWindow, suppress_tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What to add to the logits, (V,), -inf at suppress_tokens, and which tokens each row's text has, (B, V)."""
    suppressed = torch.zeros(window.model.config.vocab_size)
    suppressed[list(suppress_tokens)] = -torch.inf
    seen = torch.zeros(len(window.rows), len(suppressed), dtype=torch.bool)
    for row, tokens in zip(seen, window.rows, strict=True):
        row[tokens] = True
    return suppressed, seen


# --- Filters: logits (B, V) -> logits (B, V) -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the values below switch everything off: the model's own distribution."""

    temperature: float = 1.0  # 0 is greedy: always the likeliest token
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def filter_stages(logits: Tensor, seen: Tensor | None, sampling: Sampling) -> list[tuple[str, Tensor]]:
    """What each filter that is switched on makes of logits (B, V), in order, by name; first the logits themselves.

    seen: see `penalize_repetition`.
    """
    stages = [("model", logits)]
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
        stages.append(("penalty", logits))
    if sampling.temperature != 1:
        logits = apply_temperature(logits, sampling.temperature)
        stages.append(("temperature", logits))
    if 0 < sampling.top_k < logits.size(-1):
        logits = keep_top_k(logits, sampling.top_k)
        stages.append(("top-k", logits))
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
        stages.append(("top-p", logits))
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
        stages.append(("min-p", logits))
    return stages


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of seen tokens by the penalty and multiply the negative ones: less likely both times.

    seen (B, V) is True for every token of the text so far, prompt included. The penalty breaks the loops that a model
    falls into when it nearly always takes the likeliest token: CTRL (Keskar et al. 2019), section 4.1.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Scale the distances to the largest logit by 1 / temperature; below 1e-6 only the first of the largest stays.

    One number trades variety for safety: below 1 the likely tokens get likelier still, above 1 the unlikely ones get
    their chance. The name is from physics (Ackley, Hinton & Sejnowski 1985, Boltzmann machines).
    """
    if temperature < 1e-6:  # 0, or so near to it that float32 may round it to 0, and 0 / 0 is not a number
        top = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, top, 0.0)
    # Subtracting the maximum first keeps a tiny temperature from overflowing; softmax does not care otherwise.
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest; of equal ones the lower ids first, so that exactly k stay. k above V keeps all.

    Each token of the tail is unlikely, but one of the many comes up often, and one wrong word spoils what follows (Fan
    et al. 2018, "Hierarchical Neural Story Generation").
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[:, k:], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens that reach the total probability p, the likeliest first; at least one stays.

    A fixed k is too many tokens where the model is sure of the next one and too few where it is not; the size of this
    "nucleus" follows the model (Holtzman et al. 2019).
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the total of the tokens ahead of this one
    before[:, 0] = 0
    rejected = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(rejected, -torch.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Drop tokens whose probability is below the share min_p of the top one's.

    At a high temperature a nucleus fills up with bad tokens, because it must reach its total; min-p has no total to
    reach (Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling").
    """
    # p >= min_p · p_max means logit >= log(min_p) + the largest logit
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -torch.inf)


# --- The window --------------------------------------------------------------------------------------------------


class SlidingWindow:
    """A model reading a batch of texts that grow by one token per row at a time.

    Every row has a window of at most max_seq tokens. While all have room, the cache supplies keys and values of the
    tokens before the last. A full window must drop `stride` tokens at its left end to take one more; all its positions,
    and with them all keys, change, so it is read anew. With stride 1 that is the exact sliding window, and every
    further token costs a whole window; with stride H only every H-th token does, and the model sees max_seq - H + 1 to
    max_seq tokens.
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
        self.device = model.token_embedding.weight.device
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
