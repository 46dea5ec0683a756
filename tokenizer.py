"""Text to token ids and back.

A tokenizer has `vocab_size`, `special_ids` (never sampled), `start_id` (where a text with no prompt begins),
`encode`, `decode`, and `to_plain` / `tokenizer_from_plain`, which carry it inside a checkpoint as plain data.
"""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np

UNK, BOS = "<unk>", "<bos>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what <unk> looks like in text


class UnknownCharacterWarning(UserWarning):
    """A text had characters that the tokenizer does not know."""


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of a vocabulary: uint16 or uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def to_codepoints(text: str) -> np.ndarray:
    """The Unicode code point of every character, uint32 (lone surrogates included)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def to_text(codepoints: np.ndarray) -> str:
    """The inverse of `to_codepoints`."""
    return codepoints.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")


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

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Every character of `text`. A text starts as a line does, after a newline; without any, as `text` did.

        Raises ValueError for an empty text.
        """
        if not text:
            raise ValueError("cannot make a vocabulary from an empty text")
        # Runs of 2**20 characters keep the sorted copy small whatever the length of the text.
        runs = (np.unique(to_codepoints(text[i : i + 2**20])) for i in range(0, len(text), 2**20))
        characters = to_text(np.unique(np.concatenate(list(runs))))
        return cls(characters, start="\n" if "\n" in characters else text[0])

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
        codepoints = to_codepoints(text)
        ids = self._id_of[np.minimum(codepoints, len(self._id_of) - 1)]  # the last slot is always unknown
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


def tokenizer_from_plain(plain: dict) -> CharTokenizer:
    """The tokenizer that `to_plain` described. Raises ValueError if the description is damaged or of another kind."""
    if not isinstance(plain, dict) or plain.get("kind") != CharTokenizer.kind:
        raise ValueError("the tokenizer is of a kind that this version does not know")
    if not isinstance(plain.get("characters"), str) or not isinstance(plain.get("start"), str):
        raise ValueError("the tokenizer's description is damaged")
    return CharTokenizer(plain["characters"], plain["start"])
