"""Draw the README's curve: validation loss against seconds of training, from the measurements in docs/measured/."""

from support.start import ROOT

import json
from pathlib import Path

from benchmarks.train import NANOGPT_BEST
from support.command import UserError, optional_package

MEASURED = Path(ROOT, "docs", "measured")
PICTURE = Path(ROOT, "docs", "images", "loss.svg")
# preset, what the picture calls it, colour (of Okabe and Ito, which the colour-blind can tell apart)
CURVES = (
    ("tiny", "tiny", "#d55e00"),
    ("small", "small", "#0072b2"),
    ("reference-cpu", "nanoGPT's recipe for CPUs", "#555555"),
)


def bench_plots() -> None:
    """Draw PICTURE. Raises UserError if matplotlib or a measurement is missing or no metrics file."""
    draw({preset: read_curve(MEASURED / f"{preset}.metrics.jsonl", preset) for preset, *_ in CURVES}, PICTURE)
    print(f"drawn: {PICTURE}")


def read_curve(path: Path, preset: str) -> tuple[list[float], list[float]]:
    """Seconds and validation losses (nats per character) of a metrics file. Raises UserError like `bench_plots`."""
    if not path.is_file():
        raise UserError(f"{path} is missing: docs/measured/README.md says how it is measured")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        seconds, losses = zip(*((float(line["train_seconds"]), float(line["val_loss"])) for line in lines), strict=True)
        return list(seconds), list(losses)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no metrics file of a run") from None


def draw(curves: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    """Write the picture, an SVG; the same curves give the same bytes."""
    matplotlib = optional_package("matplotlib", "the picture")
    matplotlib.rcParams["svg.hashsalt"] = "TinyGPT"
    figure = optional_package("matplotlib.figure", "the picture").Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for preset, label, colour in CURVES:
        seconds, losses = curves[preset]
        axes.plot(seconds, losses, marker=".", color=colour, label=label)
    axes.axhline(NANOGPT_BEST, color="#555555", linestyle=":", label=f"{NANOGPT_BEST}: nanoGPT's README, on an A100")
    axes.set_ylim(bottom=min(NANOGPT_BEST, *(min(losses) for _, losses in curves.values())) - 0.1)
    axes.set(xscale="log", xlabel="seconds of training (logarithmic)", ylabel="validation loss, nats per character")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
