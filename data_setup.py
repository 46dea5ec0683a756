"""Corpora and the windows that training reads from them.

A corpus is a name (`tinyshakespeare`, `gutenberg`, `synthetic`), a UTF-8 text, a folder of them (each `.txt` is a
document), or `auto`: tinyshakespeare if it is in `data/`, else downloaded, else, with a loud line, the synthetic one:
the first command needs no network.

    python data_setup.py tinyshakespeare                  # fetch ahead of time
    python data_setup.py gutenberg --books 1342 84 100    # books of Project Gutenberg, by id
"""

import hashlib
import sys
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import cli
from download import Download, fetch
from gutenberg import FetchSettings, fetch_books, read_manifest
from texts import Split, Stretch, mapped_anew, measure

DATA_FOLDER = Path("data")
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
    """One text or several documents, in two parts. `floor`: the least validation loss, nats per character, if known."""

    name: str
    train: Split
    val: Split
    sha256: str  # of the whole text in UTF-8; of several documents, of their digests
    floor: float | None = None


def split_text(name: str, text: str | Path, floor: float | None = None) -> Corpus:
    """`split_documents` for one text or file."""
    return split_documents(name, [text], floor)


def split_documents(name: str, sources: list[str | Path], floor: float | None = None) -> Corpus:
    """The first TRAIN_SHARE of all characters to train on, the rest to validate on; a document may be cut in two.

    Raises ValueError if there is too little text to split.
    """
    measured = [(source, *measure(source)) for source in sources]
    measured = [(source, size, digest) for source, size, digest in measured if size]  # an empty document says nothing
    total = sum(size for _, size, _ in measured)
    cut = int(TRAIN_SHARE * total)
    if cut < 2 or total - cut < 2:
        raise ValueError(f"{name} holds {total} characters; that is too little to train on")
    train, val, begin = [], [], 0
    for source, size, _ in measured:
        middle = min(max(cut - begin, 0), size)
        if middle:
            train.append(Stretch(source, 0, middle))
        if middle < size:
            val.append(Stretch(source, middle, size))
        begin += size
    return assemble_corpus(name, train, val, [digest for _, _, digest in measured], floor)


def assemble_corpus(
    name: str, train: list[Stretch], val: list[Stretch], digests: list[str], floor: float | None = None
) -> Corpus:
    """A corpus of these stretches; digests: the sha256 of each document they come from."""
    several = len(digests) > 1
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest() if several else digests[0]

    def split(stretches: list[Stretch]) -> Split:
        ends = [(stretch.start, stretch.stop) for stretch in stretches]
        return Split(tuple(stretches), f"{sha256} {ends}", several)

    return Corpus(name, split(train), split(val), sha256, floor)


# --- Corpora -----------------------------------------------------------------------------------------------------


def load_corpus(spec: str, folder: Path = DATA_FOLDER, source: Download = TINYSHAKESPEARE) -> Corpus:
    """The corpus that a name, a path or `auto` stands for (see the head of this file).

    Raises ValueError if `spec` is neither a known name nor a usable text, OSError if a file cannot be read or fetched.
    Only `auto` falls back to another corpus.
    """
    if spec == "synthetic":
        return synthetic_corpus()
    if spec == "tinyshakespeare":
        return split_text(spec, fetch(source, folder))
    if spec == "gutenberg":
        return gutenberg_corpus(folder / spec)
    if spec == "auto":
        try:
            return load_corpus("tinyshakespeare", folder, source)
        except OSError as error:
            if (folder / source.file).exists():  # a damaged copy is an error, not a reason to train on something else
                raise
            print(
                f"NOTE: tinyshakespeare is not to be had ({cli.one_line(error)}).\n"
                "NOTE: training on the built-in SYNTHETIC corpus instead: made-up plays, not Shakespeare.",
                file=sys.stderr,
            )
            return synthetic_corpus()
    path = Path(spec)
    if path.is_dir():
        return split_documents(spec, text_files(path))
    if not path.is_file():
        raise ValueError(f"--data {spec}: no such file or folder, and not one of {', '.join(NAMES)}")
    return split_text(spec, path)


def gutenberg_corpus(folder: Path) -> Corpus:
    """The books in the folder, split by whole books: every tenth, counted from the last, is one to validate on.

    Raises ValueError if there are fewer than two books or one is no longer as the manifest says.
    """
    books = list(read_manifest(folder).values())
    if len(books) < 2:
        raise ValueError(f"--data gutenberg: {len(books)} book cannot be split by books; fetch one more")
    whole = []
    for book in books:
        path = folder / book.file
        size, digest = measure(path)
        if digest != book.sha256:
            raise ValueError(f"{path} is not as it was fetched: delete it and run python data_setup.py gutenberg again")
        whole.append(Stretch(path, 0, size))
    val = whole[::-1][::10][::-1]
    train = [book for book in whole if book not in val]
    return assemble_corpus("gutenberg", train, val, [book.sha256 for book in books])


def text_files(folder: Path) -> list[Path]:
    """The `.txt` files of a folder, sorted by name. Raises ValueError if there is none."""
    files = sorted(path for path in folder.glob("*.txt") if path.is_file())
    if not files:
        raise ValueError(f"--data {folder}: the folder holds no .txt file")
    return files


# --- The synthetic corpus ----------------------------------------------------------------------------------------
#
# Play-like text from a small probabilistic grammar. Wherever the grammar chooses, no option is the beginning of
# another, so a reader can tell from the characters alone which option was taken: the text has one derivation, and its
# probability is the product of the choices' probabilities. That gives the exact negative log-likelihood of every
# character, and their mean is a floor under the loss of every model: one that gets below it has seen the answers.

SPEAKERS = ("ORLA", "BERTRAM", "THE FOOL", "KING HALE", "MIRABEL", "FIRST GUARD", "SECOND GUARD", "DUKE")
WORDS = {
    "NOUN": (
        "king crown night sword heart moon storm ship ring song bell ghost hour oath wolf star hand sea wind rose "
        "fire queen child letter throne river candle garden shadow prince sorrow mirror winter thief lord name"
    ).split(),
    "QUALITY": (
        "pale sweet old bitter bold golden weary silent dark crooked honest cold noble hollow tender proud "
        "foul merry wild gentle poor mad"
    ).split(),
    "DEED": (
        "waits sleeps burns falls weeps wanders trembles returns fades speaks sinks sings dies rises laughs "
        "breaks turns stays"
    ).split(),
    "ACT": (
        "guard forget carry praise follow mourn betray deliver summon bury love fear hide curse mock seek kiss hear"
    ).split(),
    "PLACE": "castle harbour chapel market forest tower field orchard hall gate crypt cliff moor bridge".split(),
}
# A sentence is literal text with slots; the openings (up to the first slot) tell the sentences apart.
SENTENCES = (
    (5, "The {QUALITY} {NOUN} {DEED} in the {PLACE}.\n"),
    (5, "I {ACT} the {QUALITY} {NOUN}, and the {NOUN} {DEED}.\n"),
    (4, "What {QUALITY} {NOUN} {DEED} by the {PLACE}?\n"),
    (4, "My {QUALITY} {NOUN}, {ACT} your {NOUN}!\n"),
    (3, "No {NOUN} so {QUALITY} ever {DEED}, nor will it {ACT} a {NOUN}.\n"),
    (3, "Go to the {PLACE}, {ACT} a {NOUN} and {ACT} the {QUALITY} {NOUN}.\n"),
    (1, "Alas!\n"),
)
SPEECH_ENDS = 10  # the weight of ending a speech after a sentence, beside the sentences' weights above


class Choice:
    """A set of weighted strings, none the beginning of another, to draw from and to score.

    nats[i][k] is the negative log-probability of character k of option i, given the characters before it.
    """

    def __init__(self, options: list[str], weights: list[float]):
        self.options = options
        self.cumulative = list(accumulate(weights))
        mass = {}  # total weight of the options that begin so
        for option, weight in zip(options, weights, strict=True):
            for end in range(len(option) + 1):
                mass[option[:end]] = mass.get(option[:end], 0.0) + weight
        for option in options:
            if any(other != option and other.startswith(option) for other in options):
                raise ValueError(f"the option {option!r} begins another one: the grammar would be ambiguous")
        self.nats = [
            [float(np.log(mass[option[:end]] / mass[option[: end + 1]])) for end in range(len(option))]
            for option in options
        ]

    def draw(self, uniform: float) -> int:
        """The option that a uniform number from [0, 1) falls on."""
        return bisect(self.cumulative, uniform * self.cumulative[-1])


def rank_weights(count: int) -> list[float]:
    """Weights 1, 1/√2, 1/√3, …: as in real text, the first words of a list do more of the work."""
    return [rank**-0.5 for rank in range(1, count + 1)]


def compile_sentence(template: str) -> tuple[str, list[Choice]]:
    """A template as its opening literal and the choices after it, each word joined with the literal that follows."""
    opening, *slots = template.split("{")
    pairs = [slot.split("}") for slot in slots]
    return opening, [Choice([w + after for w in WORDS[kind]], rank_weights(len(WORDS[kind]))) for kind, after in pairs]


def synthetic_text(length: int, seed: int = 0) -> tuple[str, np.ndarray]:
    """`length` characters of play-like text and each one's exact negative log-likelihood in nats (length,).

    The first speaker is drawn from all speakers, every other from those who did not speak last.
    """
    random = np.random.default_rng(seed)
    uniforms = iter(())
    text, nats, size = [], [], 0

    def emit(choice: Choice) -> int:
        nonlocal uniforms, size
        uniform = next(uniforms, None)
        if uniform is None:
            uniforms = iter(random.random(2**14).tolist())
            uniform = next(uniforms)
        index = choice.draw(uniform)
        text.append(choice.options[index])
        nats.extend(choice.nats[index])
        size += len(choice.options[index])
        return index

    cues = [name + ":\n" for name in SPEAKERS]
    shares = rank_weights(len(cues))
    anyone = Choice(cues, shares)
    others = [Choice(cues[:i] + cues[i + 1 :], shares[:i] + shares[i + 1 :]) for i in range(len(cues))]
    weights = [float(weight) for weight, _ in SENTENCES]
    openings, bodies = zip(*(compile_sentence(template) for _, template in SENTENCES), strict=True)
    first_sentence = Choice(list(openings), weights)
    next_sentence = Choice([*openings, "\n"], [*weights, float(SPEECH_ENDS)])

    speaker = emit(anyone)
    while size < length:
        sentence = emit(first_sentence)
        while sentence < len(bodies):  # the option after the last sentence ends the speech
            for choice in bodies[sentence]:
                emit(choice)
            sentence = emit(next_sentence)
        index = emit(others[speaker])
        speaker = index + (index >= speaker)
    return "".join(text)[:length], np.array(nats[:length])


def synthetic_corpus(length: int = 1_000_000, seed: int = 0) -> Corpus:
    """The built-in corpus, with the entropy floor of its validation split."""
    text, nats = synthetic_text(length, seed)
    corpus = split_text("synthetic", text)
    # The first character of the split has no loss: it is only ever an input.
    floor = float(nats[len(corpus.train) + 1 :].mean())
    return Corpus(corpus.name, corpus.train, corpus.val, corpus.sha256, floor)


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
    parser = cli.Parser(__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="|".join(NAMES[1:]))
    for name in NAMES[1:]:
        command = commands.add_parser(name, description=f"Fetch or make {name}, and say how it is split.")
        if name == "gutenberg":
            cli.add_flags(command, FetchSettings)
    flags = cli.given_flags(parser.parse_args())
    name = flags.pop("name")
    if name == "gutenberg":
        fetch_books(FetchSettings(**flags), DATA_FOLDER / name)
    corpus = load_corpus(name)
    floor = f", entropy floor {corpus.floor:.4f} nats per character" if corpus.floor else ""
    print(f"{name}: {len(corpus.train):,} characters to train on, {len(corpus.val):,} to validate on{floor}")


if __name__ == "__main__":
    cli.run(main)
