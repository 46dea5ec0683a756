"""Text to token ids and back: one token per character, or byte-level BPE.

`Tokenizer` says what every tokenizer has. Characters are here, BPE is in bpe.py.

    python tokenizer.py train --data corpus.txt --vocab-size 1024 --out tokenizer.json
    python tokenizer.py show --tokenizer tokenizer.json "some text"
"""

import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

import cli
from cli import setting
from durable import write_atomically

UNK, BOS = "<unk>", "<bos>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what <unk> looks like in text


class UnknownCharacterWarning(UserWarning):
    """A text had characters that the tokenizer does not know."""


class Tokenizer(Protocol):
    """What every tokenizer has; `to_plain` and `tokenizer_from_plain` carry it inside a checkpoint as plain data."""

    kind: str
    vocab_size: int
    special_ids: tuple[int, ...]  # never sampled
    bos_id: int  # goes before each document of a corpus of several
    unk_id: int | None  # what unknown characters become; None if no character is ever unknown
    start_id: int  # what a text with no prompt begins after
    id_dtype: np.dtype

    def encode(self, text: str, unknown: str = "unk") -> list[int]: ...
    def encode_array(self, text: str, unknown: str = "unk") -> np.ndarray: ...
    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]: ...
    def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...
    def to_plain(self) -> dict: ...


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of a vocabulary: uint16 or uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def to_codepoints(text: str) -> np.ndarray:
    """The Unicode code point of every character, uint32 (lone surrogates included)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def to_text(codepoints: np.ndarray) -> str:
    """The inverse of `to_codepoints`."""
    return codepoints.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")


def check_decodable(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Ids as an integer array; ValueError if one is no whole number or outside the vocabulary."""
    ids = np.asarray(ids)
    if ids.size == 0:
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError("token ids must be a flat sequence of whole numbers")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size} tokens")
    return ids


def describe_unknown(text: str, positions: Iterable[int], most: int = 5) -> str:
    """Which characters are unknown and where: `unknown character 'é' (U+00E9) at 3`, at most `most` of them."""
    first_seen = {}
    for position in positions:
        first_seen.setdefault(text[position], int(position))
        if len(first_seen) > most:
            break
    named = [f"{char!r} (U+{ord(char):04X}) at {position}" for char, position in list(first_seen.items())[:most]]
    more = ", …" if len(first_seen) > most else ""
    plural = "s" if len(first_seen) > 1 else ""
    return f"unknown character{plural} {', '.join(named)}{more} (positions count from 0)"


class CharTokenizer:
    """One token per character: id 0 is `<unk>`, 1 is `<bos>`, then the known characters in code-point order.

    >>> tokenizer = CharTokenizer.from_text("hello")
    >>> tokenizer.encode("hole")
    [3, 5, 4, 2]
    >>> tokenizer.decode([3, 5, 4, 2])
    'hole'
    """

    kind = "char"
    special_ids = (0, 1)
    unk_id, bos_id = special_ids

    def __init__(self, characters: str, start: str):
        """characters: the vocabulary, each once and in code-point order; start: one of them, or `<bos>`."""
        codepoints = to_codepoints(characters)
        if codepoints.size == 0 or (np.diff(codepoints.astype(np.int64)) <= 0).any():
            raise ValueError("a character vocabulary must hold at least one character, each once, in order")
        if start != BOS and (len(start) != 1 or start not in characters):
            raise ValueError(f"the start token {start!r} is not in the character vocabulary")
        self.characters = characters
        self.start = start
        self.vocab_size = len(self.special_ids) + len(characters)
        self.id_dtype = id_dtype(self.vocab_size)
        self._codepoint_of = np.concatenate([np.array([ord(REPLACEMENT), 0], np.uint32), codepoints])
        # One slot per code point up to the largest known one; a text is encoded by a single look-up in this table.
        self._id_of = np.full(int(codepoints[-1]) + 2, self.unk_id, self.id_dtype)
        self._id_of[codepoints] = np.arange(len(self.special_ids), self.vocab_size)
        # ASCII comes first among the code points, so its ids fit into a byte: for it there is a table of bytes as well.
        ids = self._id_of[np.minimum(np.arange(256), len(self._id_of) - 1)]
        self._ascii_id_of = ids.astype(np.uint8).tobytes()

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Every character of `text`. A text starts as a line does, after a newline; without any, as `text` did.

        Raises ValueError for an empty text.
        """
        return cls.from_blocks([text])

    @classmethod
    def from_blocks(cls, blocks: Iterable[str], start: str | None = None) -> "CharTokenizer":
        """Every character of a text that comes in blocks; start: where texts start, if not as `from_text` says."""
        known = np.zeros(sys.maxunicode + 1, bool)  # one slot per code point
        first = ""
        for block in blocks:
            first = first or block[:1]
            known[to_codepoints(block)] = True
        if not first:
            raise ValueError("cannot make a vocabulary from an empty text")
        characters = to_text(np.flatnonzero(known).astype(np.uint32))
        return cls(characters, start or ("\n" if "\n" in characters else first))

    @property
    def start_id(self) -> int:
        """The token that a text with no prompt begins after."""
        return self.bos_id if self.start == BOS else self.encode(self.start)[0]

    def encode_array(self, text: str, unknown: str = "unk") -> np.ndarray:
        """Ids of a text (T,) as an unsigned array; at least 100 million characters a second.

        unknown says what becomes of a character outside the vocabulary: "unk" replaces it by `<unk>`, with one
        warning that names the characters and their positions; "skip" leaves it out; "error" raises ValueError.
        """
        if unknown not in ("unk", "skip", "error"):
            raise ValueError(f'unknown must be "unk", "skip" or "error", not {unknown!r}')
        ids = self._look_up(text)
        missing = ids == self.unk_id
        if not missing.any():
            return ids
        if unknown == "skip":
            return ids[~missing]
        positions = np.flatnonzero(missing)
        message = describe_unknown(text, positions)
        if unknown == "error":
            raise ValueError(message)
        warnings.warn(f"{message}; read as {UNK}", UnknownCharacterWarning, stacklevel=2)
        return ids

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks; what is unknown becomes `<unk>` without a warning."""
        return map(self._look_up, blocks)

    def _look_up(self, text: str) -> np.ndarray:
        if text.isascii():
            return np.frombuffer(text.encode("ascii").translate(self._ascii_id_of), np.uint8).astype(self.id_dtype)
        # Runs that fit into the processor's cache. Clipped, a larger code point takes the last slot, always unknown.
        runs = (to_codepoints(text[i : i + 2**14]) for i in range(0, len(text), 2**14))
        return np.concatenate([self._id_of.take(run, mode="clip") for run in runs])

    def encode(self, text: str, unknown: str = "unk") -> list[int]:
        """`encode_array` as a list of ints."""
        return self.encode_array(text, unknown).tolist()

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids: `<unk>` as U+FFFD, `<bos>` as nothing.

        Raises ValueError for an id outside the vocabulary.
        """
        ids = check_decodable(ids, self.vocab_size)
        return to_text(self._codepoint_of[ids[ids != self.bos_id]])

    def to_plain(self) -> dict:
        """Plain data, from which `tokenizer_from_plain` makes an equal tokenizer."""
        return {"kind": self.kind, "characters": self.characters, "start": self.start}


def tokenizer_from_plain(plain: dict) -> Tokenizer:
    """The tokenizer that `to_plain` described. Raises ValueError if the description is damaged or of another kind."""
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if kind == CharTokenizer.kind:
        make, content = CharTokenizer, "characters"
    elif kind == "bpe":
        from bpe import BPETokenizer as make  # only here: it needs a package that characters do without

        content = "json"
    else:
        raise ValueError("the tokenizer is of a kind that this version does not know")
    if not isinstance(plain.get(content), str) or not isinstance(plain.get("start"), str):
        raise ValueError("the tokenizer's description is damaged")
    return make(plain[content], plain["start"])


# --- The command -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainSettings:
    """Every flag of `tokenizer.py train`."""

    data: str = setting(
        "auto", "the corpus to learn from, as in main.py; only its training part is read", group="train"
    )
    vocab_size: int = setting(1024, "how many tokens, the 256 bytes and <bos> included", group="train", high=2**20)
    out: str = setting("tokenizer.json", "where the tokenizer goes", group="train")

    def __post_init__(self):
        cli.validate(self)


def train(settings: TrainSettings) -> None:
    """Learn a byte-level BPE and write it to a file."""
    from bpe import BPETokenizer, check_vocab_size
    from data_setup import load_corpus

    check_vocab_size(settings.vocab_size)
    corpus = load_corpus(settings.data)
    blocks = tqdm(corpus.train.blocks(), desc="reading", unit=" blocks", disable=None, leave=False)
    tokenizer = BPETokenizer.train(blocks, settings.vocab_size)
    write_atomically(Path(settings.out), lambda file: file.write(tokenizer.to_json().encode()))
    tokens = sum(len(ids) for ids in tokenizer.encode_blocks(corpus.val.blocks()))
    print(f"{settings.out}: {tokenizer.vocab_size} tokens, learned from the training part of {corpus.name}")
    print(f"{len(corpus.val) / tokens:.2f} characters per token on the validation part")


def show(path: Path, text: str, width: int) -> None:
    """Print the pieces of a text with their ids below, in lines of at most `width` columns."""
    from bpe import BPETokenizer

    tokenizer = BPETokenizer.load(path)
    pieces, ids = "", ""
    for token_id in tokenizer.encode(text):
        piece = tokenizer.decode_bytes([token_id]).decode("utf-8", "backslashreplace")
        piece = piece.replace(" ", "\N{OPEN BOX}").replace("\n", "\\n")
        column = max(len(piece), len(str(token_id))) + 1
        if pieces and len(pieces) + column > width:
            print(f"{pieces.rstrip()}\n{ids.rstrip()}\n")
            pieces, ids = "", ""
        pieces, ids = pieces + piece.ljust(column), ids + str(token_id).ljust(column)
    if pieces:
        print(f"{pieces.rstrip()}\n{ids.rstrip()}")


def main() -> None:
    """The command."""
    parser = cli.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="train|show", parser_class=cli.Parser)
    cli.add_flags(commands.add_parser("train", description=train.__doc__), TrainSettings)
    shower = commands.add_parser("show", description=show.__doc__)
    shower.add_argument("--tokenizer", default=TrainSettings.out, help="the file (default: %(default)s)")
    shower.add_argument("text", help="what to take apart")
    flags = cli.given_flags(parser.parse_args())
    if flags.pop("command") == "train":
        train(TrainSettings(**flags))
    else:
        show(Path(flags["tokenizer"]), flags["text"], shutil.get_terminal_size().columns)


if __name__ == "__main__":
    cli.run(main)
