"""Sample text from a trained checkpoint.

python generate.py --prompt "ROMEO:"
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import cli
from checkpoint import load_checkpoint
from cli import setting
from device import pick_device
from sampler import generate, row_generators


@dataclass(frozen=True)
class SampleSettings:
    """Every flag of generate.py, with its one default."""

    checkpoint: str = setting("checkpoints/tiny_decoder.pth", "the model to sample from", group="input")
    prompt: str | None = setting(None, "how the text begins; without it, as a new line does", group="input")
    max_new_tokens: int = setting(500, "how many tokens to add", group="sampling", low=0, high=10**9)
    temperature: float = setting(
        0.8, "below 1 bolder, above 1 wilder, 0 always the likeliest token", group="sampling", low=0, high=1e6
    )
    num_samples: int = setting(1, "how many texts, made in one batch", group="sampling", low=1, high=4096)
    seed: int | None = setting(
        None, "same seed, same text; sample i of several is seed + i (default: drawn, and shown)", group="sampling",
        low=0, high=2**63 - 1,
    )  # fmt: skip
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu", group="machine")

    def __post_init__(self):
        cli.validate(self)


def parse_settings(arguments: list[str] | None = None) -> SampleSettings:
    """The settings that a command line asks for."""
    parser = cli.Parser(__doc__)
    cli.add_flags(parser, SampleSettings)
    return SampleSettings(**cli.given_flags(parser.parse_args(arguments)))


def main() -> None:
    """The command: text to stdout as it is made, all else to stderr."""
    settings = parse_settings()
    device = pick_device(settings.device)
    loaded = load_checkpoint(Path(settings.checkpoint))
    model, tokenizer = loaded.model.to(device), loaded.tokenizer
    prompt_ids = tokenizer.encode(settings.prompt or "") or [tokenizer.start_id]
    seed = settings.seed if settings.seed is not None else torch.seed() % 2**31
    ids = torch.tensor([prompt_ids] * settings.num_samples, device=device)
    started = time.perf_counter()
    steps = generate(
        model,
        ids,
        settings.max_new_tokens,
        row_generators(seed, settings.num_samples),
        settings.temperature,
        never=tokenizer.special_ids,
    )
    if settings.num_samples == 1:
        print(settings.prompt or "", end="", flush=True)
        for chosen in steps:
            print(tokenizer.decode(chosen.tolist()), end="", flush=True)
        print()
    else:
        rows = torch.stack(list(steps), dim=1).tolist() if settings.max_new_tokens else [[]] * settings.num_samples
        for number, row in enumerate(rows, start=1):
            print(f"--- sample {number} (seed {seed + number - 1})\n{settings.prompt or ''}{tokenizer.decode(row)}")
    seconds = time.perf_counter() - started
    made = settings.max_new_tokens * settings.num_samples
    print(f"{made} tokens, {made / seconds:,.0f} tokens/s, seed {seed}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
