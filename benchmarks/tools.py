"""What the benchmarks share: the machine in words, fair timing, runs of main.py, tables."""

from support.start import ROOT

import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import torch

from formats.checkpoint import TRAINING, config_from_plain, read_checkpoint
from support.device import bfloat16_is_faster, describe_device
from training.state import RunPaths

SEEDS = (1, 2, 3)
MEASURED = Path(ROOT, "docs", "measured")


def machine() -> str:
    """This machine in one line, for the head of a table."""
    system = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    return f"{time.strftime('%Y-%m-%d')}, {system}, {describe_device(torch.device('cpu'))}"


def processor() -> str:
    """The class of this machine's processor, and how many threads PyTorch has: a table is of one such class."""
    half = "fast" if bfloat16_is_faster() else "slow"
    return f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {half}, {torch.get_num_threads()} threads"


def take_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each task over rounds in which all of them run one after the other, after one warm-up."""
    times = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, task in tasks.items():
            times[name].append(timeit.timeit(task, number=1))
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def measure(name: str, key: dict, flags: list, look: Callable[[Path], dict] = lambda out: {}) -> dict:
    """The run with this key in docs/measured/NAME of a processor like this one; if there is none, it is made and added:
    main.py with these flags, on tinyshakespeare, in a process of its own.

    A run that was stopped is resumed by the next call. Delete the file, or lines of it, to measure anew. look: what is
    to be noted besides, of the best model's file.
    """
    file, key = MEASURED / name, {"machine": processor(), **key}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for run in map(json.loads, lines):
        if key.items() <= run.items():
            return run
    print(", ".join(map(str, key.values())), flush=True)
    digest = hashlib.sha256(json.dumps([key, list(map(str, flags))]).encode()).hexdigest()[:12]
    out = Path(ROOT, "checkpoints", f"bench-{digest}.pth")
    started = time.perf_counter()
    new = ["--device", "cpu", "--seed", key["seed"], "--data", "tinyshakespeare", *flags]
    resumed = RunPaths(out).last.exists()
    command = [sys.executable, "main.py", "--out", out, *(["--resume"] if resumed else new)]
    saved = read_checkpoint(RunPaths(out).last, TRAINING)[0] if resumed else {}
    if not resumed or saved["training"]["step"] < saved["settings"]["steps"]:  # else it only has to be noted
        subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
    lines = [json.loads(line) for line in RunPaths(out).metrics.read_text(encoding="utf-8").splitlines()]
    seconds = time.perf_counter() - started
    header, tensors = read_checkpoint(RunPaths(out).last, TRAINING)
    config = config_from_plain(header["config"])
    run = {
        **key,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "preset": header["settings"]["preset"],
        "network": f"{config.num_layers} x {config.embed_dim}, window {config.max_seq}",
        "parameters": sum(tensor.numel() for name, tensor in tensors.items() if "/" not in name),
        "steps": lines[-1]["step"],
        "seconds": None if resumed else round(seconds, 1),
        "val_loss": min(line["val_loss"] for line in lines),
        "curve": [[round(line["train_seconds"], 1), round(line["val_loss"], 4)] for line in lines],
        **look(out),
    }
    with open(file, "a", encoding="utf-8", newline="\n") as stream:
        stream.write(json.dumps(run) + "\n")
    for path in RunPaths(out).all:
        path.unlink(missing_ok=True)
    return run


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, aligned for a terminal too, and an empty line."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()
