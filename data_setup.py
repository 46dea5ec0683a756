"""Corpora and the windows that training reads from them.

A corpus is a name (`tinyshakespeare`, `gutenberg`, `synthetic`), a UTF-8 text file, a folder of them (each `.txt` is a
document), or `auto`: tinyshakespeare if it is in `data/`, else downloaded, else, with a loud line, the synthetic one:
the first command needs no network.

    python data_setup.py tinyshakespeare                  # fetch ahead of time
    python data_setup.py gutenberg --books 1342 84 100    # books of Project Gutenberg, by id
"""

import support.start  # noqa: F401  first: Ctrl-C while PyTorch is imported is one line

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from corpora.download import Download, fetch
from corpora.gutenberg import add_flags, fetch_books, read_manifest
from corpora.synthetic import synthetic_text
from corpora.texts import Split, TextSpan, mapped_anew, measure
from support.command import Parser, UserError, one_line, run

DATA_FOLDER = Path("data")
TOKEN_FOLDER = DATA_FOLDER / "tokens"  # where the ids of large texts are kept
NAMES = ("auto", "tinyshakespeare", "gutenberg", "synthetic")
TRAIN_SHARE = 0.9  # of the characters, by position; the rest is the validation split

TINYSHAKESPEARE = Download(
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    file="tinyshakespeare.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclass(frozen=True)
class Corpus:
    """One text or several documents, in two parts."""

    name: str
    train: Split
    val: Split
    sha256: str  # of the whole text in UTF-8; of several documents, of their digests
    floor: float | None = None  # the lowest possible validation loss, nats per character, where it is known


# --- Corpora -----------------------------------------------------------------------------------------------------


def load_corpus(spec: str, folder: Path = DATA_FOLDER, source: Download = TINYSHAKESPEARE) -> Corpus:
    """The corpus that a name, a path or `auto` stands for (see the head of this file).

    folder: where named corpora lie. source: where tinyshakespeare comes from. Raises UserError if `spec` is neither a
    known name nor a usable text, OSError if a file cannot be read or fetched. Only `auto` falls back to another corpus.
    """
    path = Path(spec)
    if spec == "synthetic":
        return synthetic_corpus()
    if spec == "auto":
        return tinyshakespeare_or_synthetic(folder, source)
    if spec == "tinyshakespeare":
        return split_documents(spec, [fetch(source, folder)])
    if spec == "gutenberg":
        return gutenberg_corpus(folder / spec)
    if path.is_dir():
        return split_documents(spec, text_files(path))
    if not path.is_file():
        raise UserError(f"--data {spec}: no such file or folder, and not one of {', '.join(NAMES)}")
    return split_documents(spec, [path])


def tinyshakespeare_or_synthetic(folder: Path, source: Download) -> Corpus:
    """tinyshakespeare; if it cannot be downloaded, the synthetic corpus, and a loud line on stderr that says so."""
    try:
        return load_corpus("tinyshakespeare", folder, source)
    except OSError as error:
        if (folder / source.file).exists():  # a damaged copy is an error, not a reason to train on something else
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


def gutenberg_corpus(folder: Path) -> Corpus:
    """The books in the folder, split by whole books: every tenth, counted from the last, is one to validate on.

    Raises UserError if there are fewer than two books or one differs from the manifest.
    """
    books = list(read_manifest(folder).values())
    if len(books) < 2:
        raise UserError(f"--data gutenberg: {len(books)} book cannot be split by books; fetch one more")
    train, val = [], []
    for i, book in enumerate(books):
        path = folder / book.file
        size, digest = measure(path)
        if digest != book.sha256:
            raise UserError(f"{path} is not as it was fetched: delete it and run python data_setup.py gutenberg again")
        from_last = len(books) - 1 - i
        (train if from_last % 10 else val).append(TextSpan(path, 0, size))
    return assemble_corpus("gutenberg", train, val, [book.sha256 for book in books])


def text_files(folder: Path) -> list[Path]:
    """The `.txt` files of a folder, sorted by name. Raises UserError if there is none."""
    files = sorted(path for path in folder.glob("*.txt") if path.is_file())
    if not files:
        raise UserError(f"--data {folder}: the folder holds no .txt file")
    return files


def split_documents(name: str, sources: Sequence[str | Path]) -> Corpus:
    """The first TRAIN_SHARE of all characters to train on, the rest to validate on; a document may be cut in two.

    sources: texts, or paths of UTF-8 files. Raises UserError if there is too little text to split.
    """
    measured = [(source, *measure(source)) for source in sources]
    measured = [(source, size, digest) for source, size, digest in measured if size]  # empty documents are left out
    total = sum(size for _, size, _ in measured)
    cut = int(TRAIN_SHARE * total)
    if cut < 2 or total - cut < 2:
        raise UserError(f"{name} holds {total} characters; that is too little to train on")
    train, val, begin = [], [], 0
    for source, size, _ in measured:
        middle = min(max(cut - begin, 0), size)
        if middle:
            train.append(TextSpan(source, 0, middle))
        if middle < size:
            val.append(TextSpan(source, middle, size))
        begin += size
    return assemble_corpus(name, train, val, [digest for _, _, digest in measured])


def assemble_corpus(name: str, train: list[TextSpan], val: list[TextSpan], digests: list[str]) -> Corpus:
    """A corpus of these spans; digests: the sha256 of each document they come from."""
    several = len(digests) > 1
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest() if several else digests[0]

    def split(spans: list[TextSpan]) -> Split:
        ends = [(span.start, span.stop) for span in spans]
        return Split(tuple(spans), f"{sha256} {ends}", several)

    return Corpus(name, split(train), split(val), sha256)


# --- Windows -----------------------------------------------------------------------------------------------------


class ShiftedWindowDataset(Dataset):
    """Every window of a token sequence with its targets: item i is `(tokens[i : i+T], tokens[i+1 : i+T+1])`.

    tokens: a one-dimensional integer array (a `numpy.memmap` will do); T: max_seq. Raises ValueError if the sequence
    is shorter than one window and its last target.
    """

    def __init__(self, tokens: np.ndarray, max_seq: int):
        if len(tokens) < max_seq + 1:
            raise ValueError(
                f"{len(tokens)} tokens hold no window of {max_seq} and its next token: "
                "give more text or a smaller --max-seq"
            )
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
        """Inputs (B, T) and targets (B, T), int64, of the windows that start at `starts` (B,): one gather, no loop."""
        windows = mapped_anew(self.tokens)[starts[:, None] + np.arange(self.max_seq + 1)]  # (B, T + 1)
        windows = torch.from_numpy(windows.astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def consecutive_windows(tokens: np.ndarray, max_seq: int, most: int = 2**14) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (B, T) and targets (B, T), int64, that go once through all of tokens (N,), N - 1 targets in all.

    T is max_seq, except in a last, shorter window for what is left; B is as large as B x T <= most allows, at least 1.
    """
    batch_size = max(1, most // max_seq)
    whole = (len(tokens) - 1) // max_seq
    for first in range(0, whole, batch_size):
        last = min(first + batch_size, whole)
        ids = torch.from_numpy(mapped_anew(tokens)[first * max_seq : last * max_seq + 1].astype(np.int64))
        yield ids[:-1].view(-1, max_seq), ids[1:].view(-1, max_seq)
    if whole * max_seq + 1 < len(tokens):
        ids = torch.from_numpy(mapped_anew(tokens)[whole * max_seq :].astype(np.int64))
        yield ids[None, :-1], ids[None, 1:]


@lru_cache(maxsize=2)
def epoch_starts(num_windows: int, max_seq: int, seed: int, epoch: int) -> np.ndarray:
    """The windows of one epoch in random order: side by side from a random first one, so every token comes once."""
    random = np.random.default_rng([seed, epoch])
    first = random.integers(min(max_seq, num_windows))
    return first + max_seq * random.permutation(max(1, num_windows // max_seq))


def batch_starts(
    dataset: ShiftedWindowDataset,
    batch_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    ranks: int = 1,
    windows: str = "epochs",
) -> np.ndarray:
    """Which windows make up this rank's share of the batch at `step`: a pure function, so nothing to save or replay.

    windows: "epochs" follow each other without a seam; "random" ones may begin anywhere.
    The batch is cut into `ranks` equal parts, and rank r takes part r.
    """
    share = batch_size // ranks
    if windows == "random":
        starts = np.random.default_rng([seed, step]).integers(len(dataset), size=batch_size)
        return starts[rank * share : (rank + 1) * share]
    per_epoch = max(1, len(dataset) // dataset.max_seq)
    first = step * batch_size + rank * share
    epochs, places = np.divmod(np.arange(first, first + share), per_epoch)
    order = {epoch: epoch_starts(len(dataset), dataset.max_seq, seed, epoch) for epoch in np.unique(epochs).tolist()}
    return np.array([order[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)])


def noise_tokens(
    dataset: ShiftedWindowDataset, batch_size: int, share: float, seed: int, step: int, rank: int = 0, ranks: int = 1
) -> np.ndarray:
    """Tokens to be read in place of the text's in this rank's part of the batch at `step` (B, T); -1: the text's own.

    Each place is hit with probability `share`, by a token from anywhere in the text ("unigram noising", Xie et al.
    2017, https://arxiv.org/abs/1703.02573). Drawn for the whole batch, so that it does not matter how that is cut.
    """
    random = np.random.default_rng([seed, step, 1])
    hit = random.random((batch_size, dataset.max_seq)) < share
    noise = np.full(hit.shape, -1)
    noise[hit] = mapped_anew(dataset.tokens)[random.integers(len(dataset.tokens), size=hit.sum())]
    return np.split(noise, ranks)[rank]


def main() -> None:
    """Fetch corpora ahead of time."""
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="|".join(NAMES[1:]))
    for name in NAMES[1:]:
        command = commands.add_parser(name, description=f"Fetch or make {name}, and say how it is split.")
        if name == "gutenberg":
            add_flags(command)
    args = parser.parse_args()
    if args.name == "gutenberg":
        fetch_books(DATA_FOLDER / args.name, args.books, args.mirror, args.pause)
    corpus = load_corpus(args.name)
    floor = f", entropy floor {corpus.floor:.4f} nats per character" if corpus.floor else ""
    print(f"{args.name}: {len(corpus.train):,} characters to train on, {len(corpus.val):,} to validate on{floor}")


if __name__ == "__main__":
    run(main)
