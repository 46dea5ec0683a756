"""The frontier: the lowest validation loss for every amount of time, which is what `python main.py` reaches in it."""

import statistics

from benchmarks.nanogpt import FLAGS
from benchmarks.tools import SEEDS, measure, print_table

FILE = "frontier.jsonl"
MINUTES = (0.6, 2.5, 5, 15, 60)  # that `main.py` is asked for; set-up and evaluations count
ONE_SEED_MINUTES = 15  # from which on one seed must do
NANOGPT = "nanoGPT's recipe for CPUs"  # it ends by itself


def bench_frontier() -> None:
    """Make the runs that are missing, the shortest first, then print the table."""
    budgets = {"a first look": ["--preset", "tiny"]}
    budgets |= {f"{minutes:g} minutes": ["--minutes", minutes] for minutes in MINUTES}
    rows = []
    for budget, flags in {**budgets, NANOGPT: FLAGS.split()}.items():
        seeds = SEEDS[:1] if flags[0] == "--minutes" and flags[1] >= ONE_SEED_MINUTES else SEEDS
        runs = [measure(FILE, {"budget": budget, "seed": seed}, flags) for seed in seeds]
        shape = [runs[0]["preset"], runs[0]["network"], f"{runs[0]['parameters']:,}", f"{runs[0]['steps']:,}"]
        seconds = f"{statistics.median(run['curve'][-1][0] for run in runs):.0f} s"
        rows.append([budget, *shape, seconds, ", ".join(f"{run['val_loss']:.4f}" for run in runs)])
    print_table(["asked for", "preset", "network", "parameters", "steps", "training", "val loss of each seed"], rows)
