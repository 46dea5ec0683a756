"""What several processes on one machine gain over one: training speed."""

from statistics import median

import torch

from benchmarks.tools import print_table, train_once

PRESETS = ("tiny", "small")
ROUNDS = 3  # times that every way of starting has its turn


def bench_scale() -> None:
    """The same training in one process with all threads, half of them and one, and in two with half of them and one.

    Efficiency is tokens/s over (processes x the tokens/s of one process with as many threads as each of them has).
    """
    cores = torch.get_num_threads()
    half = max(1, cores // 2)
    rows = []
    for preset in PRESETS:
        runs = {way: [] for way in [(1, cores), (1, half), (1, 1), (2, half), (2, 1)]}
        flags = ("--preset", preset, "--device", "cpu", "--eval-every", 10, "--stop-at", 20)  # the first ten are slower
        for _ in range(ROUNDS):
            for (processes, threads), found in runs.items():
                found.append(train_once(*flags, processes=processes, threads=threads)[-1]["tokens_per_second"])
        speeds = {way: median(found) for way, found in runs.items()}
        for (processes, threads), speed in speeds.items():
            gain, efficiency = speed / speeds[1, cores], speed / processes / speeds[1, threads]
            rows.append([preset, f"{processes} x {threads}", f"{speed:,.0f}", f"{gain:.2f}", f"{efficiency:.0%}"])
    print_table(["preset", "processes x threads", "tokens/s", "beside one with all", "efficiency"], rows)
