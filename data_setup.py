"""Corpora and the windows that training reads from them.

A corpus is a name (`tinyshakespeare`, `gutenberg`, `synthetic`), text files in UTF-8 (or UTF-16 with its mark), folders
of them, or `auto`: tinyshakespeare if it is in `data/`, else downloaded, else, with a warning, the synthetic one: the
first command needs no network.

    python data_setup.py tinyshakespeare                  # fetch ahead of time
    python data_setup.py gutenberg --books 1342 84 100    # books of Project Gutenberg, by id
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from corpora.documents import GLOB, NAMES, path_corpus
from corpora.download import Download, fetch
from corpora.gutenberg import BOOKS, MIRROR, fetch_books, gutenberg_corpus, mirror_url
from corpora.synthetic import synthetic_text
from corpora.texts import Corpus, mapped_anew, split_documents
from support.command import Parser, UserError, one_line, one_of, run, whole

TINYSHAKESPEARE = Download(
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    file="tinyshakespeare.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def data_folder() -> Path:
    """Where named corpora lie: beside the scripts."""
    return Path(support.start.beside_scripts("data"))


def token_folder() -> Path:
    """Where the ids of large texts are kept."""
    return data_folder() / "tokens"


# --- Corpora -----------------------------------------------------------------------------------------------------


def load_corpus(
    data: str | Sequence[str], folder: Path | None = None, documents: str | None = None, glob: str = GLOB
) -> Corpus:
    """The corpus that a name, a path, several paths or `auto` stand for (see the head of this file).

    folder: where named corpora lie, if not in `data_folder`. documents, glob: see `corpora.documents.path_corpus`.
    Raises UserError if `data` is neither a known name nor a usable text, OSError if a file cannot be read or fetched.
    Only `auto` falls back to another corpus.
    """
    words, folder = [data] if isinstance(data, str) else list(data), folder or data_folder()
    spec = words[0] if len(words) == 1 else ""
    if spec in NAMES and documents:
        raise UserError(f"--documents cuts files into documents, and {spec} is none: give --data a path")
    if spec == "synthetic":
        return synthetic_corpus()
    if spec == "auto":
        return tinyshakespeare_or_synthetic(folder)
    if spec == "tinyshakespeare":
        return split_documents(spec, [fetch(TINYSHAKESPEARE, folder)])
    if spec == "gutenberg":
        return gutenberg_corpus(folder / spec)
    return path_corpus(words, documents, glob)


def tinyshakespeare_or_synthetic(folder: Path) -> Corpus:
    """tinyshakespeare; if it cannot be downloaded, the synthetic corpus, and a warning on stderr that says so."""
    try:
        return load_corpus("tinyshakespeare", folder)
    except OSError as error:
        if (folder / TINYSHAKESPEARE.file).exists():  # a damaged copy is an error, no reason to take another text
            raise
        print(f"NOTE: could not download tinyshakespeare ({one_line(error)}).", file=sys.stderr)
    print("NOTE: training on the built-in SYNTHETIC corpus instead: made-up plays, not Shakespeare.", file=sys.stderr)
    return synthetic_corpus()


def synthetic_corpus(length: int = 1_000_000, seed: int = 0) -> Corpus:
    """The built-in corpus, with the entropy floor of its validation split."""
    text, nats = synthetic_text(length, seed)
    corpus = split_documents("synthetic", [text])
    # The first character of the split has no loss: it is only ever an input.
    return dataclasses.replace(corpus, floor=float(nats[len(corpus.train) + 1 :].mean()))


# --- Windows -----------------------------------------------------------------------------------------------------


class ShiftedWindowDataset(Dataset):
    """Every window of a token sequence with its targets: item i is `(tokens[i : i+T], tokens[i+1 : i+T+1])`.

    tokens: a one-dimensional integer array (a `numpy.memmap` will do); T: max_seq. Raises ValueError if the sequence
    is shorter than one window and its last target.
    """

    def __init__(self, tokens: np.ndarray, max_seq: int):
        if len(tokens) < max_seq + 1:
            problem = f"a window of {max_seq} needs {max_seq + 1} tokens to train on, and there are {len(tokens)}"
            raise ValueError(f"{problem}: give more text or a smaller --max-seq")
        self.tokens = tokens
        self.max_seq = max_seq

    def __len__(self) -> int:
        return len(self.tokens) - self.max_seq

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs (T,) and targets (T,), int64."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.batch(np.array([index]))
        return inputs[0], targets[0]

    def batch(self, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs (B, T) and targets (B, T), int64, of the windows that start at `starts` (B,): one gather, no loop.

        A window that begins too close to the end goes on at the beginning of the text.
        """
        places = (starts[:, None] + np.arange(self.max_seq + 1)) % len(self.tokens)  # (B, T + 1)
        windows = mapped_anew(self.tokens)[places]  # of a mapped file, only these pages are in memory
        windows = torch.from_numpy(windows.astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def consecutive_windows(
    tokens: np.ndarray, max_seq: int, batch_tokens: int = 2**14, eval_tokens: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (B, T) and targets (B, T), int64, that go once through all of tokens (N,), N - 1 targets in all.

    T is max_seq, except in a last, shorter window for what is left. B x T is at most batch_tokens, but B is at least 1.
    With eval_tokens < N - 1, about that many targets, in whole windows (at least one) spread evenly over the tokens.
    """
    windows_in_all = (len(tokens) - 1) // max_seq
    everything = eval_tokens is None or eval_tokens >= len(tokens) - 1
    count = windows_in_all if everything else min(windows_in_all, max(1, eval_tokens // max_seq))
    starts = (np.arange(count) * windows_in_all // max(1, count)) * max_seq
    batch_size = max(1, batch_tokens // max_seq)
    for first in range(0, count, batch_size):
        yield ShiftedWindowDataset(tokens, max_seq).batch(starts[first : first + batch_size])
    rest = torch.from_numpy(mapped_anew(tokens)[windows_in_all * max_seq :].astype(np.int64))
    if len(rest) > 1 and (everything or not count):
        yield rest[None, :-1], rest[None, 1:]


@lru_cache(maxsize=2)
def epoch_starts(num_tokens: int, max_seq: int, seed: int, epoch: int) -> np.ndarray:
    """Where the windows of one epoch begin (count,), in random order: side by side on the text, closed to a ring, so
    that no token is an input twice.

    Each epoch turns the ring by the golden ratio: no other step spreads the tokens that are left out, and the
    borders of the windows, as evenly over the text. So over the epochs every token is read equally often.
    """
    count = max(1, num_tokens // max_seq)
    turn = (np.random.default_rng([seed]).random() + epoch * (math.sqrt(5) - 1) / 2) % 1
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return (int(turn * num_tokens) + max_seq * order) % num_tokens


def batch_starts(
    dataset: ShiftedWindowDataset,
    batch_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    ranks: int = 1,
    windows: str = "epochs",
) -> np.ndarray:
    """Where the windows of this process's share of the batch at `step` begin (batch_size / ranks,): a pure function, so
    nothing to save or replay.

    windows: with "random" a window may begin anywhere; with "epochs" a batch may span two epochs. Of several processes
    ("ranks"), each takes an equal part of the batch.
    """
    share = batch_size // ranks
    if windows == "random":
        starts = np.random.default_rng([seed, step]).integers(len(dataset), size=batch_size)
        return starts[rank * share : (rank + 1) * share]
    size = len(dataset.tokens)
    per_epoch = max(1, size // dataset.max_seq)
    first = step * batch_size + rank * share
    epochs, places = np.divmod(np.arange(first, first + share), per_epoch)
    order = {epoch: epoch_starts(size, dataset.max_seq, seed, epoch) for epoch in np.unique(epochs).tolist()}
    return np.array([order[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)])


def main() -> None:
    """Fetch or make a corpus ahead of time, and say how it is split."""
    parser = Parser(__doc__)
    parser.add_argument("name", type=one_of(*NAMES[1:]), help=f"of the corpus: {', '.join(NAMES[1:])}")
    add = parser.add_argument_group("gutenberg").add_argument
    add("--books", type=whole(1, 10**7), nargs="+", default=BOOKS, metavar="ID", help="their numbers")
    add("--mirror", type=mirror_url, default=MIRROR, help="what comes before /cache/epub/ID/pgID.txt")
    args = parser.parse_args()
    if args.name == "gutenberg":
        fetch_books(data_folder() / args.name, args.books, args.mirror)
    corpus = load_corpus(args.name)
    floor = f", entropy floor {corpus.floor:.4f} nats per character" if corpus.floor else ""
    print(f"{args.name}: {len(corpus.train):,} characters to train on, {len(corpus.val):,} to validate on{floor}")


if __name__ == "__main__":
    run(main)
