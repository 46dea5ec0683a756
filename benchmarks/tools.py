"""What the benchmarks share: the machine in words, fair timing, runs of main.py, tables."""

from support.start import ROOT

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from support.device import describe_device
from training.plan import seconds_of
from training.state import RunPaths

try:
    import resource
except ImportError:  # Windows
    resource = None

SEEDS = (1, 2, 3)
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what the system tells of a process's memory


def machine() -> str:
    """This machine in one line, for the head of a table."""
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {describe_device(torch.device('cpu'))}"
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of a GPU's memory, or of the machine's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT if resource else math.nan


def take_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each task over rounds in which all of them run one after the other, after one warm-up."""
    for task in tasks.values():
        task()
    times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(seconds_of(task))
    return {name: statistics.median(values) for name, values in times.items()}


def train_once(out: Path, *flags: object, ranks: tuple[int, int] | None = None) -> dict:
    """A run of main.py on tinyshakespeare in a process of its own: `lines`, those of its metrics, and `peak`, its
    largest memory in bytes (None if unknown). ranks: how many processes instead, and how many threads in each."""
    command = [os.path.join(ROOT, "main.py"), "--data", "tinyshakespeare", "--out", out, *flags]
    environment = dict(os.environ)
    if ranks:
        environment["OMP_NUM_THREADS"] = str(ranks[1])
    if ranks and ranks[0] > 1:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks[0], *command]
    command = [sys.executable, *map(str, command)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    peak = None
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * RSS_UNIT
    else:
        process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} left with {process.returncode}")
    lines = RunPaths(out).metrics.read_text(encoding="utf-8").splitlines()
    return {"lines": [json.loads(line) for line in lines], "peak": peak}


def spread(values: list[float], unit: str = "", digits: int = 0) -> str:
    """Median and range: `8 (7 to 9) s`."""
    if math.isinf(max(values)):
        return f"{sum(map(math.isinf, values))} of {len(values)} never reached it"
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high}){unit}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, aligned for a terminal too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
