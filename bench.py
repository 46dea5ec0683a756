"""Benchmarks: each prints a table of figures measured here and now. Compare figures of one run, not of two machines.

Timings vary with the machine's mood, so most figures are medians of several rounds in which the contestants take turns.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.data import bench_data, bench_lora
from benchmarks.decode import bench_decode, bench_decode_loss
from benchmarks.scale import bench_scale
from benchmarks.tools import machine, print_table, take_turns
from recipe import PRESETS, TrainSettings
from support import command as cli
from support.device import pick_device
from training.state import RunPaths

# --- Training ----------------------------------------------------------------------------------------------------

SEEDS = (1, 2, 3)
ON_CPU = not torch.cuda.is_available()
# preset, preset of the reference, validation loss to reach, steps between our evaluations
CONTESTS = (("tiny", "reference-cpu", 1.88, 10), ("small" if ON_CPU else "base", "reference", 1.4697, 50))
# nanoGPT's GPU recipe is at its best after about so many steps; on a CPU they are extrapolated from a few.
REFERENCE_STEPS = 1750
REFERENCE_FLAGS = () if ON_CPU else ("--dtype", "bfloat16")  # as nanoGPT does on a GPU
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def train_once(preset: str, seed: int, folder: Path, *flags: str) -> dict:
    """A run of main.py in a process of its own: its metrics lines and its peak memory in bytes (None if unknown)."""
    out = folder / f"{preset}-{seed}.pth"
    command = [sys.executable, str(Path(__file__).with_name("main.py")), "--data", "tinyshakespeare"]
    command += ["--preset", preset, "--seed", str(seed), "--out", str(out), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = None
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    else:
        process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} left with {process.returncode}")
    lines = RunPaths(out).metrics.read_text(encoding="utf-8").splitlines()
    return {"lines": [json.loads(line) for line in lines], "peak": peak}


def seconds_per_step(run: dict) -> float:
    """The mean step after the first evaluation: a process's first steps fetch memory and are slow."""
    first, last = run["lines"][0], run["lines"][-1]
    return (last["train_seconds"] - first["train_seconds"]) / (last["step"] - first["step"])


def seconds_to(run: dict, threshold: float) -> float:
    """Training seconds until the validation loss was first at or below the threshold; inf if never."""
    return min((line["train_seconds"] for line in run["lines"] if line["val_loss"] <= threshold), default=math.inf)


def spread(values: list[float], unit: str = "", digits: int = 0) -> str:
    """Median and range: `8 (7 to 9) s`."""
    if math.isinf(max(values)):
        return f"{sum(map(math.isinf, values))} of {len(values)} never reached it"
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high}){unit}"


def bench_train() -> None:
    """Seconds to a validation loss, ours against nanoGPT's published recipe, seed by seed."""
    with tempfile.TemporaryDirectory() as name:
        rows = []
        for preset, reference, threshold, every in CONTESTS:
            extrapolate = ON_CPU and reference == "reference"  # hours on a CPU
            flags = ("--eval-every", "1", "--stop-at", "3") if extrapolate else ("--eval-every", "50")
            flags += REFERENCE_FLAGS
            ours, theirs = [], []
            for seed in SEEDS:  # taking turns, so that a change of the machine's mood meets both
                ours.append(train_once(preset, seed, Path(name), "--eval-every", str(every)))
                theirs.append(train_once(reference, seed, Path(name), *flags))
            our_seconds = [seconds_to(run, threshold) for run in ours]
            their_seconds = [
                seconds_per_step(run) * REFERENCE_STEPS if extrapolate else seconds_to(run, threshold) for run in theirs
            ]
            rows.append(
                [
                    f"val <= {threshold}",
                    f"{preset}: {spread(our_seconds, ' s', 1)}",
                    f"{reference}: {spread(their_seconds, ' s')}" + (" (extrapolated)" if extrapolate else ""),
                    spread([b / a for a, b in zip(our_seconds, their_seconds, strict=True)]),
                    spread([min(line["val_loss"] for line in run["lines"]) for run in ours], digits=4),
                ]
            )
        print_table(["to reach", "ours", "nanoGPT's recipe", "ratio", "our lowest val"], rows)
        print_throughput(Path(name))


def print_throughput(folder: Path) -> None:
    """Tokens per second and memory of the 6 x 384 model: our `base` recipe and the reference, on the same device."""
    rows = []
    for preset, flags in (("base", ()), ("reference", REFERENCE_FLAGS)):
        run = train_once(preset, 0, folder, "--eval-every", "1", "--stop-at", "4", *flags)
        settings = TrainSettings(**PRESETS[preset])
        tokens = settings.batch_size * settings.max_seq
        # Per token: 6 operations a weight (2 forward, 4 backward), and 6 T C a layer for causal attention.
        width, layers = settings.embed_dim, settings.num_layers
        operations = tokens * (6 * 12 * layers * width**2 + 6 * layers * settings.max_seq * width)
        # On a GPU the process's memory says nothing.
        memory = f"{run['peak'] / 2**30:.2f} GiB" if run["peak"] and ON_CPU else "unknown"
        seconds = seconds_per_step(run)
        rate = operations / seconds / 1e12
        rows.append([preset, f"{tokens / seconds:,.0f}", f"{rate:.2f}", memory])
    print_table(["6 x 384, window 256, batch 64", "tokens/s", "TFLOP/s", "peak memory"], rows)
    alone = [f"{matmul_rate(dtype):.2f} TFLOP/s in {name}" for name, dtype in PRECISIONS.items()]
    print(f"matrix products alone: {', '.join(alone)}")


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


# Each preset, changed in one thing.
ABLATIONS = {
    "tiny": {
        "the recipe": (),
        "AdamW for all, at a rate of 0.0017": ("--optimizer", "adamw", "--lr", "0.0017"),
        "Muon with momentum 0.95": ("--muon-momentum", "0.95"),
        "GPT-2's first weights": ("--init", "normal"),
        "windows side by side": ("--windows", "epochs"),
        "twice the batch": ("--batch-size", "64"),
        "cosine to a tenth": ("--schedule", "cosine"),
        "no warm-up": ("--warmup", "0"),
        "no weight decay": ("--weight-decay", "0"),
        "no clipping": ("--clip", "1e9"),
        "float32": ("--dtype", "float32"),
    },
    "small": {
        "the recipe": (),
        "AdamW for all, at a rate of 0.002": ("--optimizer", "adamw", "--lr", "0.002"),
        "positions that start as sinusoids": ("--init", "sinusoid"),
        "windows that begin anywhere": ("--windows", "random"),
        "noise in the input": ("--token-noise", "0.08"),
        "cosine to a tenth": ("--schedule", "cosine"),
        "no warm-up": ("--warmup", "0"),
        "no weight decay": ("--weight-decay", "0"),
        "no clipping": ("--clip", "1e9"),
        "float32": ("--dtype", "float32"),
    },
}


def bench_ablate(preset: str) -> None:
    """What each change of a preset makes of its validation loss in the same seconds of training, seed by seed."""
    variants = ABLATIONS[preset]
    steps = PRESETS[preset].get("steps", TrainSettings.steps)
    with tempfile.TemporaryDirectory() as name:

        def lines_of(choice: str, seed: int, every: int, *flags: str) -> list[dict]:
            return train_once(preset, seed, Path(name), *variants[choice], "--eval-every", str(every), *flags)["lines"]

        # A change that makes a step cheaper is given more steps, and the other way round.
        pilots = {choice: [] for choice in variants}
        for _ in SEEDS:
            for choice in variants:
                first, second = lines_of(choice, 0, 10, "--stop-at", "20")  # the first steps are slow, and not counted
                pilots[choice].append(second["train_seconds"] - first["train_seconds"])
        cost = {choice: statistics.median(seconds) for choice, seconds in pilots.items()}
        budget = {choice: round(steps * cost["the recipe"] / cost[choice]) for choice in variants}
        ends = {choice: [] for choice in variants}
        for seed in SEEDS:
            for choice in variants:
                ends[choice].append(lines_of(choice, seed, 10**6, "--steps", str(budget[choice]))[-1])
    rows = []
    for choice, lines in ends.items():
        losses = [line["val_loss"] for line in lines]
        worse = [line["val_loss"] - whole["val_loss"] for line, whole in zip(lines, ends["the recipe"], strict=True)]
        seconds = spread([line["train_seconds"] for line in lines], digits=1)
        rows.append([choice, f"{budget[choice]:,}", seconds, with_deviation(losses), with_deviation(worse, "+")])
    header = [f"`{preset}`, changed in one thing", "steps", "seconds", "val loss", "beside the recipe"]
    print_table(header, rows)


def with_deviation(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation: `1.8800 ± 0.0100`."""
    return f"{statistics.mean(values):{sign}.4f} ± {statistics.stdev(values):.4f}"


# --- The command -------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[], None]] = {
    "ablate": partial(bench_ablate, "tiny"),
    "ablate-small": partial(bench_ablate, "small"),
    "data": bench_data,
    "decode": bench_decode,
    "decode-loss": bench_decode_loss,
    "lora": bench_lora,
    "scale": bench_scale,
    "train": bench_train,
}


def main() -> None:
    """Run one benchmark by name."""
    parser = cli.Parser(__doc__)
    parser.add_argument("name", choices=sorted(COMMANDS), help="which benchmark")
    name = parser.parse_args().name
    print(f"bench.py {name}: {machine()}")
    COMMANDS[name]()


if __name__ == "__main__":
    cli.run(main)
