"""Draw the pictures of README and docs: validation loss against seconds of training, from the measurements in
docs/measured/, and what Muon's orthogonalizing does to the singular values of an update.
"""

from support.start import ROOT

import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.train import NANOGPT_BEST
from optimizers import orthogonalize
from support.command import UserError, optional_package

MEASURED = Path(ROOT, "docs", "measured")
PICTURE = Path(ROOT, "docs", "images", "loss.svg")
ORTHOGONALIZE_PICTURE = Path(ROOT, "docs", "images", "orthogonalize.svg")
# preset, what the picture calls it, colour (of Okabe and Ito, which the colour-blind can tell apart)
CURVES = (
    ("tiny", "tiny", "#d55e00"),
    ("small", "small", "#0072b2"),
    ("reference-cpu", "nanoGPT's recipe for CPUs", "#555555"),
)


def bench_plots() -> None:
    """Draw both pictures. Raises UserError if matplotlib or a measurement is missing or no metrics file."""
    draw_loss({preset: read_curve(MEASURED / f"{preset}.metrics.jsonl", preset) for preset, *_ in CURVES}, PICTURE)
    print(f"drawn: {PICTURE}")
    draw_orthogonalize(ORTHOGONALIZE_PICTURE)
    print(f"drawn: {ORTHOGONALIZE_PICTURE}")


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


def new_figure(width: float, height: float):
    """An empty matplotlib figure, in inches; the same drawing gives the same bytes. Raises UserError without it."""
    optional_package("matplotlib", "the picture").rcParams["svg.hashsalt"] = "TinyGPT"
    return optional_package("matplotlib.figure", "the picture").Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path: Path) -> None:
    """Write an SVG without a date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def draw_loss(curves: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    """The validation loss of each preset over seconds of training."""
    figure = new_figure(8, 4.2)
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
    save_figure(figure, path)


def example_updates() -> dict[str, Tensor]:
    """Two matrices (512, 128), the shape of `mlp.up` in `tiny`, by name: independent normal numbers, and one whose
    singular values fall from 1 to 1e-6 in equal ratios."""
    generator = torch.Generator().manual_seed(0)
    normal, left = torch.randn(2, 512, 128, generator=generator)
    right = torch.randn(128, 128, generator=generator)
    values = torch.logspace(0, -6, 128)
    return {"random": normal, "ill-conditioned": torch.linalg.qr(left)[0] * values @ torch.linalg.qr(right)[0].mT}


def draw_orthogonalize(path: Path) -> None:
    """The singular values of the example updates before and after `orthogonalize`, in float32."""
    figure = new_figure(8, 3.8)
    for axes, (name, update) in zip(figure.subplots(1, 2, sharey=True), example_updates().items(), strict=True):
        update = update / update.norm()  # what `orthogonalize` begins with
        before, after = torch.linalg.svdvals(torch.stack([update, orthogonalize(update[None], torch.float32)[0]]))
        axes.axhspan(0.7, 1.2, color="#0072b2", alpha=0.15, label="0.7 to 1.2")
        axes.plot(before, color="#555555", linewidth=2, label="before")
        axes.plot(after, color="#d55e00", linewidth=2, label="after five rounds")
        title = f"{name}: {after.max():.2f} to {after.min():.{2 if after.min() > 0.01 else 4}f}"
        axes.set(yscale="log", title=title, xlabel="singular values, largest first")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("singular value (logarithmic)")
    figure.axes[0].legend(loc="lower left")
    save_figure(figure, path)
