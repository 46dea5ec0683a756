"""The frontier: the lowest validation loss for every amount of time, which is what `python main.py` reaches in it.

Each run that ends adds a line to FILE, and a run that is stopped is resumed by the next call: the whole takes hours.
Delete the file, or its lines of one machine, to measure anew.
"""

from support.start import ROOT

import json
import time
from pathlib import Path

import torch

from benchmarks.nanogpt import FLAGS
from benchmarks.tools import SEEDS, print_table, processor, spread, train_once
from formats.checkpoint import load_model
from training.state import RunPaths

FILE = Path(ROOT, "docs", "measured", "frontier.jsonl")
NANOGPT = "nanoGPT's recipe for CPUs"
# For how many minutes `main.py` is asked; one is beside nanoGPT's recipe, which ends by itself. Set-up and evaluations
# count: of the quarter of a minute, some 6 seconds are left to train.
MINUTES = (0.25, 0.6, 2.5, 5, 15, 60)
LONG = 15  # minutes, from which on one seed must do


def bench_frontier() -> None:
    """Make the runs that are missing, the shortest first, then print the table of this machine's."""
    here = processor()
    for seed in SEEDS:
        measure_once(here, NANOGPT, seed, FLAGS["reference-cpu"])
    for minutes in MINUTES:
        for seed in SEEDS if minutes < LONG else SEEDS[:1]:
            measure_once(here, f"{minutes:g} minutes", seed, ["--minutes", minutes])
    rows = []
    for budget in [f"{minutes:g} minutes" for minutes in MINUTES] + [NANOGPT]:
        runs = [run for run in read_frontier() if (run["machine"], run["budget"]) == (here, budget)]
        first = runs[0]
        losses = ", ".join(f"{run['val_loss']:.4f}" for run in runs)
        seconds = [run["curve"][-1][0] for run in runs]
        shape = [first["preset"], first["network"], f"{first['parameters']:,}", f"{first['steps']:,}"]
        rows.append([budget, *shape, spread(seconds, " s"), losses])
    print_table(["asked for", "preset", "network", "parameters", "steps", "training", "val loss of each seed"], rows)


def read_frontier() -> list[dict]:
    """The runs measured so far."""
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()] if FILE.exists() else []


def measure_once(machine: str, budget: str, seed: int, flags: list) -> None:
    """Add a line to FILE for this run, unless there is one."""
    if any((run["machine"], run["budget"], run["seed"]) == (machine, budget, seed) for run in read_frontier()):
        return
    print(f"{budget}, seed {seed}: {' '.join(['python main.py', *map(str, flags)])}", flush=True)
    out = Path(ROOT, "checkpoints", f"frontier-{budget.split()[0]}-{seed}.pth")
    if RunPaths(out).last.exists():
        flags = ["--resume"]
    else:
        flags = [*flags, "--data", "tinyshakespeare", "--device", "cpu", "--seed", seed]
    lines = train_once(*flags, out=out)
    checkpoint = load_model(out)
    config = checkpoint.model.config
    run = {
        "machine": machine,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "budget": budget,
        "seed": seed,
        "preset": checkpoint.origin["preset"],
        "network": f"{config.num_layers} x {config.embed_dim}, window {config.max_seq}",
        "parameters": checkpoint.model.num_parameters(),
        "steps": lines[-1]["step"],
        "val_loss": min(line["val_loss"] for line in lines),
        "curve": [[round(line["train_seconds"], 1), round(line["val_loss"], 4)] for line in lines],
    }
    FILE.parent.mkdir(exist_ok=True)
    with open(FILE, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(run) + "\n")
