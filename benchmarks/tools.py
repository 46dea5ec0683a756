"""What the benchmarks share: the machine in words, fair timing, runs of main.py, tables."""

from support.start import ROOT

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from support.device import describe_device
from training.state import RunPaths

SEEDS = (1, 2, 3)
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what the system tells of a process's memory


def seconds_of(task: Callable[[], object]) -> float:
    """Wall-clock seconds that a call takes."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def machine() -> str:
    """This machine in one line, for the head of a table."""
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {describe_device(torch.device('cpu'))}"
    )


def take_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each task over rounds in which all of them run one after the other, after one warm-up."""
    for task in tasks.values():
        task()
    times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(seconds_of(task))
    return {name: statistics.median(values) for name, values in times.items()}


def train_once(
    *flags: object, out: Path | None = None, processes: int = 1, threads: int | None = None, module: str = "main"
) -> list[dict]:
    """Run main.py on tinyshakespeare in a process of its own, or in several: the lines of its metrics.

    The last one also has the process's `peak_memory` in bytes, nan where the system does not tell. out: where the model
    is to stay; threads: of each process; module: what runs in place of main.py. Raises RuntimeError if the run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = out or Path(folder, "run.pth")
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
        script = ("-m", module, "--data", "tinyshakespeare", "--out", out, *flags)
        command = [str(part) for part in (sys.executable, *(launcher if processes > 1 else ()), *script)]
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, cwd=ROOT)
        peak = math.nan
        if hasattr(os, "wait4"):  # not on Windows
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * RSS_UNIT
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} left with {process.returncode}")
        lines = [json.loads(line) for line in RunPaths(out).metrics.read_text(encoding="utf-8").splitlines()]
    lines[-1]["peak_memory"] = peak
    return lines


def spread(values: list[float], unit: str = "", digits: int = 0) -> str:
    """Median and range: `8 (7 to 9) s`."""
    if math.isinf(max(values)):
        return f"{sum(map(math.isinf, values))} of {len(values)} never reached it"
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high}){unit}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, aligned for a terminal too, and an empty line."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()
