"""Fine-tuning on a little text of another style: in full, and by adapters of several ranks."""

import tempfile
from pathlib import Path

from benchmarks.tools import lowest, print_table, train_once
from corpora.synthetic import synthetic_text
from formats.checkpoint import ADAPTER, MODEL, read_checkpoint

STEPS = 200
# Learning rates that a few tries, for full and rank 32, found best by this same validation loss.
METHODS = {
    "full": ("--optimizer", "adamw", "--lr", 2e-3),
    "rank 8": ("--lora-rank", 8, "--lr", 2e-2),
    "rank 32": ("--lora-rank", 32, "--lr", 2e-2),
}


def bench_lora() -> None:
    """One table: what is trained, the size of its file, the time and the loss."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, plays = folder / "base.pth", folder / "plays.txt"
        text, nats = synthetic_text(100_000)
        plays.write_text(text, encoding="utf-8", newline="\n")
        train_once("--preset", "tiny", "--eval-every", 10**6, out=base)
        rows = []
        for method, flags in METHODS.items():
            out = folder / f"{method.replace(' ', '-')}.pth"
            tuning = ("--init-from", base, "--data", plays, "--preset", "tiny", "--steps", STEPS, "--eval-every", 100)
            lines = train_once(*tuning, *flags, out=out)
            _header, trained = read_checkpoint(out, MODEL if method == "full" else ADAPTER)
            count, size = sum(tensor.numel() for tensor in trained.values()), out.stat().st_size / 1e6
            seconds, loss = lines[-1]["train_seconds"], lowest(lines)
            rows.append([method, f"{count:,}", f"{size:.2f} MB", f"{seconds:.0f} s", f"{loss:.4f}"])
    floor = nats[90_001:].mean()
    print_table(["fine-tuning", "trained", "file", f"{STEPS} steps", f"val loss (floor {floor:.4f})"], rows)
