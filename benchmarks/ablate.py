"""What each change of a preset does to its validation loss in the same seconds of training, seed by seed."""

import statistics

from benchmarks.tools import SEEDS, print_table, spread, train_once
from benchmarks.train import seconds_per_step
from recipe import make_parser

BOTH = {
    "the recipe": (),
    "cosine to a tenth": ("--schedule", "cosine"),
    "no warm-up": ("--warmup", 0),
    "no weight decay": ("--weight-decay", 0),
    "no clipping": ("--grad-clip", 1e9),
    "float32": ("--dtype", "float32"),
}
# Each preset, changed in one thing: these after BOTH.
ABLATIONS = {
    "tiny": {
        "AdamW for all, learning rate 0.0017": ("--optimizer", "adamw", "--lr", 0.0017),
        "Muon with momentum 0.95": ("--muon-momentum", 0.95),
        "GPT-2's first weights": ("--init", "normal"),
        "windows side by side": ("--windows", "epochs"),
        "twice the batch": ("--batch-size", 2 * make_parser("tiny").get_default("batch_size")),
    },
    "small": {
        "AdamW for all, learning rate 0.002": ("--optimizer", "adamw", "--lr", 0.002),
        "positions that start as sinusoids": ("--init", "sinusoid"),
        "windows that begin anywhere": ("--windows", "random"),
        "noise in the input": ("--token-noise", 0.08),
    },
}


def bench_ablate(preset: str) -> None:
    """One table; a change that makes a step cheaper is given more steps, and the other way round."""
    variants = BOTH | ABLATIONS[preset]
    pilots, ends = {choice: [] for choice in variants}, {choice: [] for choice in variants}
    for _ in SEEDS:
        for choice, flags in variants.items():
            lines = train_once("--preset", preset, "--seed", 0, "--eval-every", 20, "--stop-at", 100, *flags)
            pilots[choice].append(seconds_per_step(lines))
    cost = {choice: statistics.median(seconds) for choice, seconds in pilots.items()}
    total = make_parser(preset).get_default("steps") * cost["the recipe"]
    budget = {choice: round(total / cost[choice]) for choice in variants}
    for seed in SEEDS:
        for choice, flags in variants.items():
            length = ("--steps", budget[choice], "--eval-every", 10**6)
            ends[choice].append(train_once("--preset", preset, "--seed", seed, *length, *flags)[-1])
    rows = []
    for choice, lines in ends.items():
        losses = [line["val_loss"] for line in lines]
        worse = [loss - whole["val_loss"] for loss, whole in zip(losses, ends["the recipe"], strict=True)]
        seconds = spread([line["train_seconds"] for line in lines], digits=1)
        rows.append([choice, f"{budget[choice]:,}", seconds, with_deviation(losses), with_deviation(worse, "+")])
    print_table([f"`{preset}`, changed in one thing", "steps", "seconds", "val loss", "beside the recipe"], rows)


def with_deviation(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation: `1.8800 ± 0.0100`."""
    return f"{statistics.mean(values):{sign}.4f} ± {statistics.stdev(values):.4f}"
