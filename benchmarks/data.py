"""Text to ids: the speed of the tokenizers, and the time and memory that a text of a gigabyte takes."""

import math
import os
import tempfile
import time
from itertools import repeat
from pathlib import Path

import numpy as np

from benchmarks.tools import RSS_UNIT, print_table, take_turns
from corpora.fast_bpe import FastBPETokenizer, library
from corpora.synthetic import synthetic_text
from corpora.texts import encode_split
from data_setup import ShiftedWindowDataset, load_corpus
from tokenizer import BPETokenizer, CharTokenizer

try:
    import resource
except ImportError:  # Windows
    resource = None

LARGE = 10**9  # bytes of the large text
BPE_TEXT = 2 * 10**7  # characters for BPE
VOCAB_SIZE = 1024


def bench_data() -> None:
    """Rates from text to ids, and the memory that a text of a gigabyte takes."""
    sample = synthetic_text(10**5)[0]  # a small one: what making it takes would hide what follows
    with tempfile.TemporaryDirectory() as name:
        large_text(sample, Path(name))
    print_rates(sample)


def peak_memory() -> float:
    """The most bytes that this process has held so far; nan where the system does not tell."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT if resource else math.nan


def large_text(sample: str, folder: Path) -> None:
    """Encode a large text into a token file and read windows from it, with time and memory of each step."""
    path = folder / "large.txt"
    with open(path, "wb") as file:
        file.writelines(repeat(sample.encode(), LARGE // len(sample)))
    before = peak_memory()
    rows = []

    def step(words: str, task):
        started = time.perf_counter()
        result = task()
        seconds = time.perf_counter() - started
        rows.append([words, f"{seconds:.1f} s", f"{(peak_memory() - before) / 1e6:,.0f} MB"])
        return result

    corpus = step("count, check and hash", lambda: load_corpus(str(path)))
    tokenizer = step("find the characters", lambda: CharTokenizer.from_blocks(corpus.train.blocks()))
    ids = step("encode into a token file", lambda: encode_split(tokenizer, corpus.train, folder))
    windows = ShiftedWindowDataset(ids, 256)
    random = np.random.default_rng(0)

    def read(batches: int):
        for _ in range(batches):
            windows.batch(random.integers(len(windows), size=64))

    step("read 10 batches of 64 windows of 256", lambda: read(10))
    step("read 1,000 more", lambda: read(1000))
    print_table([f"a text of {LARGE / 1e9:g} GB, characters", "seconds", "most memory so far"], rows)


def print_rates(sample: str) -> None:
    """Characters per second of each tokenizer."""
    text = sample * (BPE_TEXT // len(sample))
    characters, pairs = CharTokenizer.from_text(text), BPETokenizer.train([sample], VOCAB_SIZE)
    tasks = {"characters (ASCII)": lambda: characters.encode_array(text), "BPE": lambda: pairs.encode_array(text)}
    if library():
        fast = FastBPETokenizer(pairs.tokens, pairs.merges)
        tasks["BPE, tokenizers package"] = lambda: fast.encode_array(text)
    seconds = take_turns(tasks, rounds=3)
    rows = [[name, f"{len(text) / taken / 1e6:,.1f}"] for name, taken in seconds.items()]
    print_table([f"text to ids, {os.cpu_count()} CPU cores", "million characters per second"], rows)
