"""Draw the pictures of README and docs: validation loss against seconds of training, from the measurements in
docs/measured/, and what Muon's orthogonalizing does to the singular values of an update.
"""

import json

import torch
from torch import Tensor

from benchmarks.frontier import FILE, NANOGPT
from benchmarks.nanogpt import NANOGPT_BEST
from benchmarks.tools import MEASURED
from optimizers import orthogonalize
from support.command import optional_package

IMAGES = MEASURED.parent / "images"
# Okabe and Ito's, which the colour-blind can tell apart.
COLOURS = {"TinyGPT, bfloat16 fast": "#d55e00", "TinyGPT, bfloat16 slow": "#0072b2", NANOGPT: "#555555"}


def bench_plots() -> None:
    """Draw both pictures; the same measurements give the same bytes. Raises UserError without matplotlib."""
    optional_package("matplotlib", "the picture").rcParams["svg.hashsalt"] = "TinyGPT"
    figures = optional_package("matplotlib.figure", "the picture")
    for name, draw in {"loss.svg": draw_loss, "orthogonalize.svg": draw_orthogonalize}.items():
        figure = figures.Figure(figsize=(8, 4.2), layout="constrained")
        draw(figure)
        figure.savefig(IMAGES / name, metadata={"Date": None})
        print(f"drawn: {IMAGES / name}")


def draw_loss(figure) -> None:
    """Every run of the frontier: its validation loss over seconds of training, and a dot where it ends."""
    axes = figure.subplots()
    for run in map(json.loads, (MEASURED / FILE).read_text(encoding="utf-8").splitlines()):
        name = NANOGPT if run["budget"] == NANOGPT else f"TinyGPT, {run['machine'].split(', ')[1]}"
        seconds, losses = zip(*run["curve"], strict=True)
        axes.plot(seconds, losses, color=COLOURS[name], alpha=0.4, linewidth=1)
        axes.plot(seconds[-1], run["val_loss"], "o", color=COLOURS[name], label=name)
    axes.axhline(NANOGPT_BEST, color="#555555", linestyle=":", label=f"{NANOGPT_BEST}: nanoGPT's README, on an A100")
    axes.set(xscale="log", xlabel="seconds of training (logarithmic)", ylabel="validation loss, nats per character")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once)


def example_updates() -> dict[str, Tensor]:
    """Two matrices (512, 128), the shape of `mlp.up` in `tiny`, by name: independent normal numbers, and one whose
    singular values fall from 1 to 1e-6 in equal ratios."""
    generator = torch.Generator().manual_seed(0)
    normal, left = torch.randn(2, 512, 128, generator=generator)
    right = torch.randn(128, 128, generator=generator)
    values = torch.logspace(0, -6, 128)
    return {"random": normal, "ill-conditioned": torch.linalg.qr(left)[0] * values @ torch.linalg.qr(right)[0].mT}


def draw_orthogonalize(figure) -> None:
    """The singular values of the example updates before and after `orthogonalize`, in float32."""
    for axes, (name, update) in zip(figure.subplots(1, 2, sharey=True), example_updates().items(), strict=True):
        update = update / update.norm()  # what `orthogonalize` begins with
        before, after = torch.linalg.svdvals(torch.stack([update, orthogonalize(update[None], torch.float32)[0]]))
        axes.axhspan(0.7, 1.2, color="#0072b2", alpha=0.15, label="0.7 to 1.2")
        axes.plot(before, color="#555555", linewidth=2, label="before")
        axes.plot(after, color="#d55e00", linewidth=2, label="after five rounds")
        axes.set(yscale="log", title=f"{name}: {after.max():.3g} to {after.min():.3g}")
        axes.set(xlabel="singular values, largest first", ylabel="singular value (logarithmic)")
        axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
