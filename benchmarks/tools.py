"""What the benchmarks share: the machine in words, fair timing, tables."""

import platform
import statistics
import time
from collections.abc import Callable

import torch

from support.device import describe_device


def machine() -> str:
    """This machine in one line, for the head of a table."""
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {describe_device(torch.device('cpu'))}"
    )


def seconds_of(task: Callable[[], object]) -> float:
    """Wall-clock seconds that one call takes."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def take_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each task over rounds in which all of them run one after the other, after one warm-up."""
    for task in tasks.values():
        task()
    times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(seconds_of(task))
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, aligned for a terminal too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
