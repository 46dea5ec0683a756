"""What it costs not to tune: the loss of `python main.py --data TEXT` minus that of the best of a grid in equal time.

Put texts (`.txt`) into data/texts/. The loss is that of characters at the end of a text, which no run has read: its own
validation split would be small, and has chosen among its evaluations.
"""

from support.start import ROOT

import itertools
from pathlib import Path

from benchmarks.tools import measure, print_table
from support.command import UserError

FOLDER = Path(ROOT, "data", "texts")
SIZES = (10_000, 100_000, 10**9)  # characters to train and validate on; the last: all there are
HELD_OUT = 20_000  # characters at the end, or a tenth of a shorter text, but MIN_HELD_OUT at least
MIN_HELD_OUT = 5_000
MINUTES = (0.5, 1)
LONG, LONG_TEXTS = 5, ("code", "names", "tinyshakespeare")  # minutes, and the first words of the texts that get them
DEFAULT = "the default"
GRID = {
    f"{preset}, window {window}, dropout {dropout}": ["--preset", preset, "--max-seq", window, "--dropout", dropout]
    for preset, window, dropout in itertools.product(("tiny", "mini", "small"), (64, 256), (0, 0.2))
}
TINY = next(iter(GRID))  # as it is


def bench_texts() -> None:
    """One row for each text, size and time; then the mean and the highest regret."""
    texts = sorted(FOLDER.glob("*.txt"))
    if not texts:
        raise UserError(f"bench.py texts needs texts in {FOLDER}")
    rows, regrets = [], []
    for path, size in itertools.product(texts, SIZES):
        for minutes in (*MINUTES, LONG) if size == SIZES[-1] and path.stem.startswith(LONG_TEXTS) else MINUTES:
            runs = {name: run_once(path, size, minutes, name) for name in (DEFAULT, *GRID)}
            losses = {name: run["held_out"] for name, run in runs.items()}
            best = min(GRID, key=losses.get)
            regrets.append(losses[DEFAULT] - losses[best])
            chosen = f"{runs[DEFAULT]['preset']} {losses[DEFAULT]:.4f}"
            others = [f"{losses[TINY]:.4f}", f"{losses[best]:.4f} ({best})", f"{regrets[-1]:+.4f}"]
            rows.append([path.stem, f"{min(size, path.stat().st_size):,}", f"{minutes:g}", chosen, *others])
    print_table(["text", "characters", "minutes", "the default", "tiny", "best of the grid", "regret"], rows)
    print(f"mean regret {sum(regrets) / len(regrets):.4f}, highest {max(regrets):.4f} nats per character")


def run_once(path: Path, size: int, minutes: float, name: str) -> dict:
    """The run on so many characters of a text, as `measure` notes it."""
    text = path.read_text(encoding="utf-8")
    cut = len(text) - min(HELD_OUT, max(MIN_HELD_OUT, len(text) // 10))
    data = FOLDER / "cut" / f"{path.stem}-{size}.txt"
    data.parent.mkdir(exist_ok=True)
    data.write_text(text[:cut][:size], encoding="utf-8")
    key = {"text": path.stem, "size": size, "minutes": minutes, "choice": name, "seed": 1}
    flags = ["--data", data, "--minutes", minutes, *GRID.get(name, [])]
    return measure("texts.jsonl", key, flags, held_out=text[cut:])
