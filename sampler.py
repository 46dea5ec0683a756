"""How a trained model makes text: pure functions on logits (B, V) and the one decode loop that every command uses."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tiny_decoder import TinyGPT


def row_generators(seed: int, count: int) -> list[torch.Generator]:
    """One random generator per row of a batch: row i draws what a batch of one with seed + i would draw.

    They are separate from torch's global generator, so a seed gives the same text whatever else drew numbers.
    """
    return [torch.Generator().manual_seed((seed + row) % 2**63) for row in range(count)]


def next_token_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """logits (B, V) -> probabilities (B, V): softmax(logits / temperature), and at temperature 0 all on the largest."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    # Subtracting the maximum first keeps a tiny temperature from overflowing; softmax does not care otherwise.
    return torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)


def draw(probabilities: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One token per row of probabilities (B, V) -> (B,), by inverting the cumulative distribution."""
    uniforms = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    cumulative = probabilities.double().cumsum(-1)
    uniforms = uniforms.to(cumulative.device) * cumulative[:, -1]
    # right=True: a token of probability zero spans no part of the line, so it is never chosen.
    chosen = torch.searchsorted(cumulative, uniforms[:, None], right=True)[:, 0]
    # u * total can round up to the total: then the last token that has any probability is meant.
    return torch.minimum(chosen, cumulative.argmax(-1))


@torch.inference_mode()
def generate(
    model: TinyGPT,
    ids: Tensor,
    max_new_tokens: int,
    generators: list[torch.Generator],
    temperature: float = 1.0,
    never: tuple[int, ...] = (),
) -> Iterator[Tensor]:
    """Yield the next token (B,) of every row, max_new_tokens times.

    ids (B, T), T >= 1, is the prompt; the whole history is kept, and the model is fed its last max_seq tokens, a
    window that slides by one token a step. Tokens in `never` (the special ones) are never drawn.
    Raises FloatingPointError if the model gives logits that are not finite.
    """
    model.eval()
    out_tokens = ids
    for _ in range(max_new_tokens):
        logits = model(out_tokens[:, -model.config.max_seq :])[:, -1].float()  # (B, V)
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the model gave logits that are not finite: its weights are damaged")
        logits[:, list(never)] = -torch.inf
        chosen = draw(next_token_probabilities(logits, temperature), generators)
        out_tokens = torch.cat([out_tokens, chosen[:, None]], dim=1)
        yield chosen
