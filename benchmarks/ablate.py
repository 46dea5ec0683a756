"""What each change of the preset tiny does to its validation loss in the same seconds of training, seed by seed."""

import statistics

from benchmarks.tools import SEEDS, print_table, seconds_per_step, spread, train_once
from recipe import preset_settings

TORCH_MUON = "PyTorch's Muon"  # benchmarks/torch_muon.py
COSTLY = ("--dtype", "--optimizer", "--batch-size")  # flags that change what a step costs
VARIANTS = {
    "the recipe": (),
    "float32": ("--dtype", "float32"),
    "AdamW for all, learning rate 0.0017": ("--optimizer", "adamw", "--lr", 0.0017),
    "twice the batch": ("--batch-size", 2 * preset_settings("tiny").batch_size),
    "cosine to a tenth": ("--schedule", "cosine"),
    "no warm-up": ("--warmup", 0),
    "no weight decay": ("--weight-decay", 0),
    "no clipping": ("--grad-clip", 1e9),
    "Muon with momentum 0.95": ("--muon-momentum", 0.95),
    "GPT-2's initial weights": ("--init", "normal"),
    TORCH_MUON: (),
    "windows side by side": ("--windows", "epochs"),
}


def bench_ablate() -> None:
    """One table; a change that makes a step cheaper is given more steps, and the other way round."""
    pilots = {choice: [] for choice, flags in VARIANTS.items() if not flags or flags[0] in COSTLY}
    ends = {choice: [] for choice in VARIANTS}
    for _ in SEEDS:
        for choice, seconds in pilots.items():
            flags = ("--seed", 0, "--eval-every", 20, "--stop-at", 100)
            seconds.append(seconds_per_step(train_variant(choice, *flags)))
    cost = {choice: statistics.median(seconds) for choice, seconds in pilots.items()}
    total = preset_settings("tiny").steps * cost["the recipe"]
    budget = {choice: round(total / cost.get(choice, cost["the recipe"])) for choice in VARIANTS}
    for seed in SEEDS:
        for choice in VARIANTS:
            length = ("--steps", budget[choice], "--eval-every", 10**6)
            ends[choice].append(train_variant(choice, "--seed", seed, *length)[-1])
    rows = []
    for choice, lines in ends.items():
        losses = [line["val_loss"] for line in lines]
        worse = [loss - whole["val_loss"] for loss, whole in zip(losses, ends["the recipe"], strict=True)]
        seconds = spread([line["train_seconds"] for line in lines], digits=1)
        rows.append([choice, f"{budget[choice]:,}", seconds, with_deviation(losses), with_deviation(worse, "+")])
    print_table(["`tiny`, changed in one thing", "steps", "seconds", "val loss", "difference"], rows)


def train_variant(choice: str, *flags: object) -> list[dict]:
    """The metrics of one run of the preset with one thing changed."""
    module = "benchmarks.torch_muon" if choice == TORCH_MUON else "main"
    return train_once("--preset", "tiny", *VARIANTS[choice], *flags, module=module)


def with_deviation(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation: `1.8800 ± 0.0100`."""
    return f"{statistics.mean(values):{sign}.4f} ± {statistics.stdev(values):.4f}"
