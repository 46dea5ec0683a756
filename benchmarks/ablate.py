"""What each change of the preset tiny does to its validation loss in the same number of tokens, seed by seed."""

import statistics

from benchmarks.tools import SEEDS, measure, print_table
from recipe import preset_settings

TINY = preset_settings("tiny")
VARIANTS = {
    "the recipe": (),
    "AdamW for all, learning rate 0.0017": ("--optimizer", "adamw", "--lr", 0.0017),
    "twice the batch, half the steps": ("--batch-size", 2 * TINY.batch_size, "--steps", TINY.steps // 2),
    "cosine to a tenth": ("--schedule", "cosine"),
    "no warm-up": ("--warmup", 0),
    "no weight decay": ("--weight-decay", 0),
    "no clipping": ("--grad-clip", 1e9),
    "Muon with momentum 0.95": ("--muon-momentum", 0.95),
    "GPT-2's initial weights": ("--init", "normal"),
    "windows side by side": ("--windows", "epochs"),
    "a moving average of the weights": ("--ema-decay", 0.98),
    "the average as the teacher": ("--ema-decay", 0.98, "--distill", 0.5),
}


def bench_ablate() -> None:
    """One table, from docs/measured/ablate.jsonl."""
    rows, recipe = [], []
    for choice, flags in VARIANTS.items():
        flags = ["--preset", "tiny", "--eval-every", 10**6, *flags]
        runs = [measure("ablate.jsonl", {"changed": choice, "seed": seed}, flags) for seed in SEEDS]
        losses = [run["val_loss"] for run in runs]
        recipe = recipe or losses
        worse = [loss - whole for loss, whole in zip(losses, recipe, strict=True)]
        rows.append([choice, with_deviation(losses), with_deviation(worse, "+")])
    print_table(["`tiny`, changed in one thing", "val loss", "difference"], rows)


def with_deviation(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation: `1.8800 ± 0.0100`."""
    return f"{statistics.mean(values):{sign}.4f} ± {statistics.stdev(values):.4f}"
