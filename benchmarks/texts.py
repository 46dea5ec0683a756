"""Texts of one's own: what the defaults lose to a tuned run, and what fine-tuning gains over training from nothing.

Put texts into data/texts/. Runs are noted in docs/measured/texts.jsonl, and made only once.
"""

from support.start import ROOT

import itertools
from pathlib import Path

from benchmarks.tools import measure, print_table
from formats.checkpoint import load_model, usual_path
from sampling.score import token_losses
from support.command import UserError

FOLDER = Path(ROOT, "data", "texts")
SIZES = (10_000, 100_000, 10**9)  # characters to train and validate on; the last: all there are
HELD_OUT, MIN_HELD_OUT = 20_000, 5_000  # characters at the end, which no run has read: a tenth, within these bounds
MINUTES, LONG_MINUTES = (0.5, 1), 5  # the latter: of these texts as a whole
LONG_TEXTS = ("code", "names", "tinyshakespeare")  # first words of their names
GRID = {
    f"{preset}, window {window}, dropout {dropout}": ["--preset", preset, "--max-seq", window, "--dropout", dropout]
    for preset, window, dropout in itertools.product(("tiny", "mini", "small"), (64, 256), (0, 0.2))
}
TINY = next(iter(GRID))  # as it is
TUNING = {
    "the default": [],  # from nothing
    "full": ["--init-from", usual_path()],
    "rank 8": ["--init-from", usual_path(), "--lora-rank", 8],
}


def texts_to_measure() -> list[Path]:
    """The texts, or UserError if there is none."""
    if not (texts := sorted(path for path in FOLDER.glob("*") if path.is_file() and path.name[0] != ".")):
        raise UserError(f"bench.py needs texts in {FOLDER}")
    return texts


def bench_texts() -> None:
    """The regret: the default's loss minus that of the best of the grid, for each text, size and time."""
    rows, regrets = [], []
    for path, (smaller, size) in itertools.product(texts_to_measure(), itertools.pairwise((0, *SIZES))):
        if unread_from(path.read_text(encoding="utf-8")) <= smaller:  # all of it has been measured
            continue
        for minutes in (*MINUTES, LONG_MINUTES) if size == SIZES[-1] and path.stem.startswith(LONG_TEXTS) else MINUTES:
            runs = {name: run_once(path, size, minutes, name, GRID.get(name, [])) for name in ("the default", *GRID)}
            losses = {name: run["held_out"] for name, run in runs.items()}
            default, best = losses["the default"], min(GRID, key=losses.get)
            regrets.append(default - losses[best])
            chosen = f"{runs['the default']['preset']} {default:.4f}"
            others = [f"{losses[TINY]:.4f}", f"{losses[best]:.4f} ({best})", f"{regrets[-1]:+.4f}"]
            rows.append([path.stem, f"{runs[TINY]['characters']:,}", f"{minutes:g}", chosen, *others])
    print_table(["text", "characters", "minutes", "the default", "tiny", "best of the grid", "regret"], rows)
    print(f"mean regret {sum(regrets) / len(regrets):.4f}, highest {max(regrets):.4f} nats per character")


def bench_lora() -> None:
    """Fine-tuning of the usual checkpoint, in full and with adapters, beside training from nothing in the same time."""
    rows = []
    for path in texts_to_measure():
        runs = [run_once(path, SIZES[1], MINUTES[-1], name, flags) for name, flags in TUNING.items()]
        rows.append([path.stem, *(f"{run['val_loss']:.4f}" for run in runs)])
    print_table([f"validation loss after {MINUTES[-1]} minute", *TUNING], rows)


def unread_from(text: str) -> int:
    """Where the end of a text begins that no run reads."""
    return len(text) - min(HELD_OUT, max(MIN_HELD_OUT, len(text) // 10))


def run_once(path: Path, size: int, minutes: float, name: str, flags: list) -> dict:
    """The run on so many characters of a text, as `measure` notes it."""
    text = path.read_text(encoding="utf-8")
    cut = unread_from(text)
    data = FOLDER / "cut" / f"{path.name}-{size}.txt"
    data.parent.mkdir(exist_ok=True)
    characters = data.write_text(text[:cut][:size], encoding="utf-8")

    def held_out_loss(out: Path) -> dict:
        if "--lora-rank" in flags:
            return {}
        loaded = load_model(out)
        losses = token_losses(loaded.model.eval(), loaded.tokenizer.encode_array(text[cut:]))
        return {"characters": characters, "held_out": float(losses.mean())}

    key = {"text": path.name, "size": size, "minutes": minutes, "choice": name, "seed": 1}
    return measure("texts.jsonl", key, ["--data", data, "--minutes", minutes, *flags], held_out_loss)
