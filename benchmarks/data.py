"""Benchmarks of what comes before and after training on one play: text to ids at any size, and fine-tuning."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.tools import print_table, seconds_of, take_turns
from corpora import texts
from data_setup import ShiftedWindowDataset, split_text, synthetic_text
from formats.checkpoint import read_content
from recipe import PRESETS
from tokenizer import CharTokenizer

LARGE = 10**9  # bytes of the large text
BPE_TEXT = 2 * 10**7  # characters for BPE
VOCAB_SIZE = 1024


# --- Text to ids -------------------------------------------------------------------------------------------------


def memory(field: str) -> int | None:
    """Bytes that this process holds now (`VmRSS`) or held at most (`VmHWM`); None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def bench_data() -> None:
    """Rates from text to ids, and the memory that a text of a gigabyte takes."""
    sample = synthetic_text(10**6)[0]
    with tempfile.TemporaryDirectory() as name:
        large_text(sample, Path(name))
    print()
    rates(sample)


def large_text(sample: str, folder: Path) -> None:
    """Encode a large text into a token file and read windows from it, with time and memory of each step."""
    path = folder / "large.txt"
    with open(path, "wb") as file:
        for _ in range(LARGE // len(sample)):
            file.write(sample.encode())
    before = memory("VmRSS")
    rows = []

    def step(words: str, task):
        started = time.perf_counter()
        result = task()
        seconds = time.perf_counter() - started
        held = "not measured" if before is None else f"{(memory('VmHWM') - before) / 1e6:,.0f} MB"
        rows.append([words, f"{seconds:.1f} s", held])
        return result

    corpus = step("count, check and hash", lambda: split_text("large", path))
    tokenizer = step("find the characters", lambda: CharTokenizer.from_blocks(corpus.train.blocks()))
    step("encode into a token file", lambda: texts.encode_split(tokenizer, corpus.train, folder))
    ids = step("find that file again", lambda: texts.encode_split(tokenizer, corpus.train, folder))
    windows = ShiftedWindowDataset(ids, 256)
    random = np.random.default_rng(0)

    def read(steps: int):
        for _ in range(steps):
            windows.batch(random.integers(len(windows), size=64))

    step("read 10 batches of 64 windows of 256", lambda: read(10))
    step("read 1,000 more", lambda: read(1000))
    print_table([f"a text of {LARGE / 1e9:g} GB, characters", "seconds", "most memory so far"], rows)


def rates(sample: str) -> None:
    """Characters per second of both tokenizers, BPE beside the library alone."""
    from corpora.bpe import BPETokenizer, cut_between_words

    text = sample * (BPE_TEXT // len(sample))
    characters, pairs = CharTokenizer.from_text(text), BPETokenizer.train([sample], VOCAB_SIZE)
    pieces = list(cut_between_words([text]))
    tasks = {
        "characters (ASCII)": lambda: characters.encode_array(text),
        "BPE, the library alone": lambda: pairs.library.encode_batch_fast(pieces),
        "BPE": lambda: pairs.encode_array(text),
    }
    seconds = take_turns(tasks, rounds=3)
    rows = [[name, f"{len(text) / taken / 1e6:,.1f}"] for name, taken in seconds.items()]
    print_table([f"text to ids, {os.cpu_count()} CPU cores", "million characters per second"], rows)


# --- Fine-tuning -------------------------------------------------------------------------------------------------

BASE_STEPS, STEPS = PRESETS["tiny"]["steps"], 200
# Rates that a few tries, for full and rank 32, found best by this same validation loss.
METHODS = {
    "full": ("--optimizer", "adamw", "--lr", "2e-3"),
    "rank 2": ("--lora-rank", "2", "--lr", "2e-2"),
    "rank 8": ("--lora-rank", "8", "--lr", "2e-2"),
    "rank 32": ("--lora-rank", "32", "--lr", "2e-2"),
}


def bench_lora() -> None:
    """Fine-tune a model of tinyshakespeare on a little of another style, in full and by adapters of several ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, nats = synthetic_text(100_000)
        (folder / "plays.txt").write_text(text, encoding="utf-8", newline="\n")
        floor = nats[90_001:].mean()
        base = folder / "base.pth"
        run(
            "--data", "tinyshakespeare", "--preset", "tiny", "--steps", BASE_STEPS, "--eval-every", 10**6, "--out", base
        )
        rows = []
        for method, flags in METHODS.items():
            out = folder / f"{method.replace(' ', '-')}.pth"
            tuning = ["--init-from", base, "--data", folder / "plays.txt", "--preset", "tiny", "--out", out]
            seconds = seconds_of(
                lambda tuning=tuning, flags=flags: run(*tuning, "--steps", STEPS, "--eval-every", 100, *flags)
            )
            lines = out.with_suffix(".metrics.jsonl").read_text(encoding="utf-8").splitlines()
            best = min(map(json.loads, lines), key=lambda line: line["val_loss"])
            rows.append(
                [
                    method,
                    f"{trained_parameters(out):,}",
                    f"{out.stat().st_size / 1e6:.2f} MB",
                    f"{json.loads(lines[-1])['train_seconds']:.0f} s (with start and evaluations {seconds:.0f} s)",
                    f"{best['val_loss']:.4f}",
                ]
            )
    print_table(["fine-tuning", "trained", "file", f"{STEPS} steps", f"val loss (floor {floor:.4f})"], rows)


def trained_parameters(out: Path) -> int:
    """How many numbers the run that wrote `out` trained: those of the file, adapter or model."""
    return sum(tensor.numel() for tensor in read_content(out)["weights"].values())


def run(*flags: object) -> None:
    """main.py in a process of its own, in silence."""
    command = [sys.executable, str(Path(__file__).with_name("main.py")), *map(str, flags)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
