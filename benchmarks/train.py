"""Seconds on a CPU to a validation loss, ours beside nanoGPT's published recipe, and the training speed of both."""

import math

import torch

from benchmarks.nanogpt import FLAGS
from benchmarks.tools import SEEDS, print_table, spread, train_once
from recipe import parse_flags
from support.device import product_rate

NANOGPT_BEST = 1.4697  # the validation loss that nanoGPT's README gives for its large recipe
TO_REACH = 1.88  # what nanoGPT's README says of its recipe for CPUs


def seconds_per_step(lines: list[dict]) -> float:
    """The mean step after the first evaluation: a process's first steps fetch memory and are slow."""
    first, last = lines[0], lines[-1]
    return (last["train_seconds"] - first["train_seconds"]) / (last["step"] - first["step"])


def seconds_to(lines: list[dict], threshold: float) -> float:
    """Training seconds until the validation loss was first at or below the threshold; inf if never."""
    return min((line["train_seconds"] for line in lines if line["val_loss"] <= threshold), default=math.inf)


def lowest(lines: list[dict]) -> float:
    """The lowest validation loss of a run."""
    return min(line["val_loss"] for line in lines)


def bench_train() -> None:
    """The contest with every seed, then the throughput."""
    print_table(["to reach", "ours", "nanoGPT's recipe", "ratio", "our lowest val"], [contest()])
    print_throughput()


def contest() -> list[str]:
    """The row of the table: both recipes take turns, so that a change of the machine's speed meets both."""
    ours, theirs = [], []
    for seed in SEEDS:
        same = ("--device", "cpu", "--seed", seed)
        ours.append(train_once("--preset", "tiny", *same, "--eval-every", 10))
        theirs.append(train_once(*FLAGS["reference-cpu"], *same, "--eval-every", 50))
    our_seconds = [seconds_to(run, TO_REACH) for run in ours]
    # A run that never reached it counts with its whole time, which is too little.
    their_seconds = [min(seconds_to(run, TO_REACH), run[-1]["train_seconds"]) for run in theirs]
    return [
        f"val <= {TO_REACH}",
        f"tiny: {spread(our_seconds, ' s', 1)}",
        f"reference-cpu: {spread(their_seconds, ' s')}; lowest {spread(list(map(lowest, theirs)), digits=4)}",
        spread([b / a for a, b in zip(our_seconds, their_seconds, strict=True)], digits=1),
        spread(list(map(lowest, ours)), digits=4),
    ]


def print_throughput() -> None:
    """Tokens per second of the 6 x 384 model: our `base` recipe and the reference."""
    rows = []
    for name, flags in {"base": ["--preset", "base"], "reference": FLAGS["reference"]}.items():
        lines = train_once(*flags, "--device", "cpu", "--eval-every", 1, "--stop-at", 4)
        speed, rate = throughput(flags, lines)
        rows.append([name, f"{speed:,.0f}", f"{rate:.2f}"])
    print_table(["6 x 384, window 256, batch 64", "tokens/s", "TFLOP/s"], rows)
    alone = [f"{product_rate('cpu', dtype):.2f} TFLOP/s in {dtype}" for dtype in (torch.bfloat16, torch.float32)]
    print(f"matrix products alone: {', '.join(alone)}".replace("torch.", ""))


def throughput(flags: list[str], lines: list[dict]) -> tuple[float, float]:
    """Tokens/s and TFLOP/s of a run with these flags.

    6 operations a weight (2 forward, 4 backward), and 6 T C a layer for causal attention; embeddings and head left out.
    """
    settings, _ = parse_flags(flags)
    tokens = settings.batch_size * settings.max_seq / seconds_per_step(lines)
    operations = 6 * settings.num_layers * settings.embed_dim * (12 * settings.embed_dim + settings.max_seq)
    return tokens, tokens * operations / 1e12
