"""Text to token ids and back, one token per character. Byte-level BPE is in corpora/bpe.py."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

UNK, BOS = "<unk>", "<bos>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what <unk> looks like in text


class UnknownCharacterWarning(UserWarning):
    """A text had characters that the tokenizer does not know."""


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of a vocabulary: uint16 or uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def to_codepoints(text: str) -> np.ndarray:
    """The Unicode code point of every character (T,), uint32 (lone surrogates included)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def to_text(codepoints: np.ndarray) -> str:
    """The inverse of `to_codepoints`."""
    return codepoints.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")


def check_decodable(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Ids as an integer array (T,); ValueError if one is not a whole number or is outside the vocabulary."""
    ids = np.asarray(ids)
    if ids.size == 0:
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError("token ids must be a flat sequence of whole numbers")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size} tokens")
    return ids


def warn_unknown(text: str, positions: Iterable[int], replacement: str, most: int = 5) -> None:
    """One warning about the unknown characters of a text: the first `most` of them, and where they are.

    `unknown character 'é' (U+00E9) at 1 (positions count from 0); read as <unk>`
    """
    first_seen = {}
    for position in positions:
        first_seen.setdefault(text[position], int(position))
        if len(first_seen) > most:
            break
    named = [f"{char!r} (U+{ord(char):04X}) at {position}" for char, position in list(first_seen.items())[:most]]
    more = ", …" if len(first_seen) > most else ""
    plural = "s" if len(first_seen) > 1 else ""
    message = f"unknown character{plural} {', '.join(named)}{more} (positions count from 0); read as {replacement}"
    warnings.warn(message, UnknownCharacterWarning, stacklevel=3)


class CharTokenizer:
    """One token per character: id 0 is `<unk>`, 1 is `<bos>`, then the known characters in code-point order.

    >>> tokenizer = CharTokenizer.from_text("hello")
    >>> tokenizer.encode("hole")
    [3, 5, 4, 2]
    >>> tokenizer.decode([3, 5, 4, 2])
    'hole'

    Every tokenizer (this one and `BPETokenizer`) has:
    kind: its name in a checkpoint.
    vocab_size: how many tokens, special ones included.
    special_ids: tokens that are no text; never sampled, except eos_id.
    bos, bos_id: the token that goes before each document of a corpus of several documents.
    eos_id: ends a text when it is sampled; None if no token does.
    unk_id: what unknown characters become; None if no character is ever unknown.
    start_id: the token that a text without a prompt begins after.
    id_dtype: the numpy type of its ids.
    encode, encode_array, encode_blocks, decode: text to ids and back.
    to_plain: plain data for a checkpoint, which `corpora.bpe.tokenizer_from_plain` turns back into a tokenizer.
    """

    kind = "char"
    special_ids = (0, 1)
    unk_id, bos_id = special_ids
    bos, eos_id = BOS, None

    def __init__(self, characters: str, start: str):
        """characters: the vocabulary, each once and in code-point order; start: one of them, or `<bos>`.

        Raises ValueError if they are not so.
        """
        codepoints = to_codepoints(characters[: sys.maxunicode + 2])  # a longer text must hold a character twice
        if codepoints.size == 0 or (np.diff(codepoints.astype(np.int64)) <= 0).any():
            raise ValueError("a character vocabulary must hold at least one character, each once, in order")
        if start != BOS and (len(start) != 1 or start not in characters):
            raise ValueError(f"the start token {start[:20]!r} is not in the character vocabulary")
        self.characters = characters
        self.start = start
        self.vocab_size = len(self.special_ids) + len(characters)
        self.id_dtype = id_dtype(self.vocab_size)
        self._codepoint_of = np.concatenate([np.array([ord(REPLACEMENT), 0], np.uint32), codepoints])
        # One slot per code point up to the largest known one; a text is encoded by a single look-up in this table.
        self._id_of = np.full(int(codepoints[-1]) + 2, self.unk_id, self.id_dtype)
        self._id_of[codepoints] = np.arange(len(self.special_ids), self.vocab_size)
        self.start_id = self.bos_id if start == BOS else int(self._id_of[ord(start)])

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Every character of `text`. New texts start after a newline; if it has none, after its first character.

        Raises ValueError for an empty text.
        """
        return cls.from_blocks([text])

    @classmethod
    def from_blocks(cls, blocks: Iterable[str], start: str | None = None) -> "CharTokenizer":
        """`from_text` for a text that comes in blocks; `start` replaces the start token that `from_text` chooses."""
        known = np.zeros(sys.maxunicode + 1, bool)  # one slot per code point
        first = ""
        for block in blocks:
            first = first or block[:1]
            known[to_codepoints(block)] = True
        if not first:
            raise ValueError("cannot make a vocabulary from an empty text")
        characters = to_text(np.flatnonzero(known).astype(np.uint32))
        return cls(characters, start or ("\n" if "\n" in characters else first))

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of a text (T,) as an unsigned array; unknown characters become `<unk>`, with one warning."""
        ids = self._look_up(text)
        positions = np.flatnonzero(ids == self.unk_id)
        if positions.size:
            warn_unknown(text, positions, UNK)
        return ids

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks; unknown characters become `<unk>` without a warning."""
        return map(self._look_up, blocks)

    def _look_up(self, text: str) -> np.ndarray:
        # Clipped, a code point beyond the table takes the last slot, which is always unknown.
        return self._id_of.take(to_codepoints(text), mode="clip")

    def encode(self, text: str) -> list[int]:
        """`encode_array` as a list of ints."""
        return self.encode_array(text).tolist()

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids: `<unk>` as U+FFFD, `<bos>` as nothing.

        Raises ValueError for an id outside the vocabulary.
        """
        ids = check_decodable(ids, self.vocab_size)
        return to_text(self._codepoint_of[ids[ids != self.bos_id]])

    def to_plain(self) -> dict:
        """Plain data from which `tokenizer_from_plain` makes an equal tokenizer."""
        return {"kind": self.kind, "characters": self.characters, "start": self.start}
