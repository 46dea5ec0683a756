"""What several processes gain, and what they cost: the measurement behind `bench.py scale`.

A step is gradients (shared among the ranks), communication (what averaging the gradients adds to that), and the update
(every rank does all of it). `bench_scale` starts this module in one process and, with torchrun, in two, taking turns.
"""

from support.start import ROOT

import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from benchmarks.tools import peak_memory, print_table
from main import compute_gradients, train_step
from recipe import parse_flags
from support.command import Parser
from support.command import run as run_command
from support.device import pick_device
from training.distributed import DistContext, joined
from training.run import Run, start_run

PRESET_NAMES = ("tiny", "small")
ROUNDS = 3  # times that every way of starting has its turn
STEPS = 8  # measured in each
HEADER = ["preset", "processes x threads", "tokens/s", "beside one with all", "efficiency", "step", "gradients"]
HEADER += ["communication", "update", "MiB per process"]


def bench_scale() -> None:
    """The same training in one process with all threads, half of them, one, and in two with one, half of them each.

    Efficiency is tokens/s over (processes x the tokens/s of one process with as many threads as each of them has).
    """
    cores = torch.get_num_threads()
    ways = dict.fromkeys([(1, cores), (1, max(1, cores // 2)), (1, 1), (2, 1), (2, max(1, cores // 2))])
    rows = []
    for preset in PRESET_NAMES:
        found = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way in ways:
                found[way].append(start(preset, *way))
        middle = {way: medians(runs) for way, runs in found.items()}
        for (processes, threads), figures in middle.items():
            speed = figures["tokens_per_second"]
            rows.append(
                [
                    f"{preset} ({figures['parameters'] / 1e6:.2f}M)",
                    f"{processes} x {threads}",
                    f"{speed:,.0f}",
                    f"{speed / middle[1, cores]['tokens_per_second']:.2f}",
                    f"{speed / processes / middle[1, threads]['tokens_per_second']:.0%}",
                    *(f"{figures[name] * 1e3:.1f} ms" for name in ("step", "gradients", "communication", "update")),
                    f"{figures['peak_memory'] / 2**20:.0f}",
                ]
            )
    print_table(HEADER, rows)


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Name by name."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def start(preset: str, processes: int, threads: int) -> dict[str, float]:
    """What one measurement says, made by so many processes with so many threads each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "benchmarks.scale", preset],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return json.loads(done.stdout)


def measure(run: Run) -> dict[str, float]:
    """Medians in seconds over STEPS, after one step to warm up; the first rank's clock speaks for all."""
    wrapped, bare = run.network, run.model

    def seconds(task, network: nn.Module) -> float:
        run.network = network
        bare.zero_grad(set_to_none=True)
        run.dist.largest(0)  # all ranks start together
        started = time.perf_counter()
        task(run)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    train_step(run)
    times = []
    for _ in range(STEPS):
        apart, together = seconds(compute_gradients, bare), seconds(compute_gradients, wrapped)
        step = seconds(train_step, wrapped)
        times.append({"step": step, "gradients": apart, "communication": together - apart, "update": step - together})
    return medians(times)


def measure_preset(name: str, dist: DistContext) -> dict[str, float]:
    """The figures of one preset on the synthetic corpus, the peak memory in bytes as a mean over the ranks."""
    settings, _given = parse_flags(["--preset", name, "--data", "synthetic"])
    run = start_run(settings, dist.pick_device(pick_device(settings.device)), dist)
    figures = measure(run)
    figures["tokens_per_second"] = settings.batch_size * settings.max_seq / figures["step"]
    figures["parameters"] = run.model.num_parameters()
    figures["peak_memory"] = float(dist.sum(peak_memory(run.device))) / dist.size
    return figures


def main() -> None:
    """One measurement, as a line of JSON."""
    parser = Parser(__doc__)
    parser.add_argument("preset", choices=PRESET_NAMES, help="which recipe to measure")
    with joined() as dist:
        print(json.dumps(measure_preset(parser.parse_args().preset, dist)))


if __name__ == "__main__":
    run_command(main)
