"""Seconds to a validation loss, ours beside nanoGPT's published recipe, and the training speed of both."""

import argparse
import math
import tempfile
from pathlib import Path

import torch

from benchmarks.tools import SEEDS, print_table, spread, take_turns, train_once
from recipe import make_parser
from support.device import pick_device

ON_CPU = not torch.cuda.is_available()
# preset, preset of the reference, validation loss to reach, steps between our evaluations
CONTESTS = (("tiny", "reference-cpu", 1.88, 10), ("small" if ON_CPU else "base", "reference", 1.4697, 50))
# nanoGPT's GPU recipe reaches its lowest loss after about so many steps; on a CPU the time for them is extrapolated.
REFERENCE_STEPS = 1750
REFERENCE_FLAGS = () if ON_CPU else ("--dtype", "bfloat16")  # as nanoGPT does on a GPU


def seconds_per_step(run: dict) -> float:
    """The mean step after the first evaluation: a process's first steps fetch memory and are slow."""
    first, last = run["lines"][0], run["lines"][-1]
    return (last["train_seconds"] - first["train_seconds"]) / (last["step"] - first["step"])


def seconds_to(run: dict, threshold: float) -> float:
    """Training seconds until the validation loss was first at or below the threshold; inf if never."""
    return min((line["train_seconds"] for line in run["lines"] if line["val_loss"] <= threshold), default=math.inf)


def bench_train() -> None:
    """Every contest with every seed, then the throughput."""
    with tempfile.TemporaryDirectory() as name:
        rows = [contest(Path(name), *entry) for entry in CONTESTS]
        print_table(["to reach", "ours", "nanoGPT's recipe", "ratio", "our lowest val"], rows)
        print_throughput(Path(name))


def contest(folder: Path, preset: str, reference: str, threshold: float, every: int) -> list[str]:
    """One row: a preset and the reference, taking turns, so that a change of the machine's speed meets both."""
    extrapolate = ON_CPU and reference == "reference"  # hours on a CPU
    flags = ("--eval-every", 1, "--stop-at", 3) if extrapolate else ("--eval-every", 50)
    ours, theirs = [], []
    for seed in SEEDS:
        out = folder / f"{preset}-{seed}.pth"
        ours.append(train_once(out, "--preset", preset, "--seed", seed, "--eval-every", every))
        out = folder / f"{reference}-{seed}.pth"
        theirs.append(train_once(out, "--preset", reference, "--seed", seed, *flags, *REFERENCE_FLAGS))
    our_seconds = [seconds_to(run, threshold) for run in ours]
    their_seconds = [
        seconds_per_step(run) * REFERENCE_STEPS if extrapolate else seconds_to(run, threshold) for run in theirs
    ]
    return [
        f"val <= {threshold}",
        f"{preset}: {spread(our_seconds, ' s', 1)}",
        f"{reference}: {spread(their_seconds, ' s')}" + (" (extrapolated)" if extrapolate else ""),
        spread([b / a for a, b in zip(our_seconds, their_seconds, strict=True)], digits=1),
        spread([min(line["val_loss"] for line in run["lines"]) for run in ours], digits=4),
    ]


def print_throughput(folder: Path) -> None:
    """Tokens per second and memory of the 6 x 384 model: our `base` recipe and the reference, on the same device."""
    rows = []
    for preset, flags in (("base", ()), ("reference", REFERENCE_FLAGS)):
        out = folder / f"{preset}-speed.pth"
        run = train_once(out, "--preset", preset, "--eval-every", 1, "--stop-at", 4, *flags)
        settings = make_parser(preset).parse_args([])
        speed = settings.batch_size * settings.max_seq / seconds_per_step(run)
        # On a GPU the process's memory says nothing.
        memory = f"{run['peak'] / 2**30:.2f} GiB" if run["peak"] and ON_CPU else "unknown"
        rows.append([preset, f"{speed:,.0f}", f"{speed * operations_per_token(settings) / 1e12:.2f}", memory])
    print_table(["6 x 384, window 256, batch 64", "tokens/s", "TFLOP/s", "peak memory"], rows)
    alone = [f"{matmul_rate(dtype):.2f} TFLOP/s in {dtype}" for dtype in (torch.bfloat16, torch.float32)]
    print(f"matrix products alone: {', '.join(alone)}".replace("torch.", ""))


def operations_per_token(settings: argparse.Namespace) -> int:
    """6 a weight (2 forward, 4 backward), and 6 T C a layer for causal attention; embeddings and head left out."""
    return 6 * settings.num_layers * settings.embed_dim * (12 * settings.embed_dim + settings.max_seq)


def matmul_rate(dtype: torch.dtype, rows: int = 4096, inner: int = 384, columns: int = 1536) -> float:
    """TFLOP/s of the model's largest product by itself."""
    device = pick_device("auto")
    a, b = (torch.randn(n, inner, device=device, dtype=dtype) for n in (rows, columns))

    def product() -> None:
        torch.nn.functional.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = take_turns({"product": product}, rounds=20)["product"]
    return 2 * rows * inner * columns / seconds / 1e12
