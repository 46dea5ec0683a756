"""Text to token ids and back: one token per character, then byte-level BPE, which learns its tokens from a text."""

import functools
import re
import sys
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

UNK, BOS = "<unk>", "<bos>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what <unk> looks like in text


class Tokenizer(Protocol):
    """What `CharTokenizer` and `BPETokenizer` below have in common."""

    kind: str  # its name in a checkpoint
    vocab_size: int  # how many tokens, special ones included
    id_dtype: np.dtype  # the smallest unsigned type that holds every id
    special_ids: tuple[int, ...]  # tokens that are not text; never sampled, except eos_id
    bos: str  # the name of the token that goes before each document of a corpus of several documents
    bos_id: int
    eos_id: int | None  # ends a text when it is sampled; None if no token does
    unk_id: int | None  # what unknown characters become; None if no character is ever unknown
    start: str  # what a text without a prompt begins after: a character, or bos
    start_id: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text; one warning names the characters that the tokenizer does not know."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as an array (T,) of type id_dtype."""

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks, the same as of the whole text; no warning."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids. Raises ValueError for an id outside the vocabulary."""

    def to_plain(self) -> dict:
        """Plain data for a checkpoint; `tokenizer_from_plain` in corpora/tokenizer_files.py makes a tokenizer of it."""


class UnknownCharacterWarning(UserWarning):
    """A text had characters that the tokenizer does not know."""


def warn_unknown(text: str, positions: Sequence[int], replacement: str) -> None:
    """One warning about the unknown characters at these positions of a text; it names the first five."""
    named = ", ".join(f"{text[i]!r} (U+{ord(text[i]):04X}) at {i}" for i in positions[:5])
    more = f" and {len(positions) - 5:,} more" if len(positions) > 5 else ""
    message = f"unknown characters: {named}{more} (positions count from 0); read as {replacement}"
    warnings.warn(message, UnknownCharacterWarning, stacklevel=3)


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of a vocabulary: uint16 or uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def check_decodable(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Ids as an integer array (T,); ValueError if one is not a whole number or is outside the vocabulary."""
    ids = np.asarray(ids)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"token ids must be a flat sequence of whole numbers from 0 to {vocab_size - 1}")
    return ids.astype(np.int64, copy=False)


# --- One token per character -----------------------------------------------------------------------------------------


def to_codepoints(text: str) -> np.ndarray:
    """The Unicode code point of every character (T,), uint32 (lone surrogates included)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class CharTokenizer(Tokenizer):
    """One token per character: id 0 is `<unk>`, 1 is `<bos>`, then the characters in the order of the vocabulary.

    >>> tokenizer = CharTokenizer.from_text("hello")
    >>> tokenizer.characters
    'ehlo'
    >>> tokenizer.encode("hole")
    [3, 5, 4, 2]
    >>> tokenizer.decode([3, 5, 4, 2])
    'hole'
    """

    kind = "char"
    special_ids = (0, 1)
    unk_id, bos_id = special_ids
    bos = BOS

    def __init__(self, characters: str, start: str = BOS):
        """characters: the vocabulary in the order of ids, each character once; start: one of them, or `<bos>`."""
        self.characters, self.start = characters, start
        self.vocab_size = len(self.special_ids) + len(characters)
        self.id_dtype = id_dtype(self.vocab_size)
        self._text_of = [REPLACEMENT, "", *characters]
        # One slot per code point, so that a whole text is encoded by a single look-up in this table.
        self._id_of = np.full(sys.maxunicode + 1, self.unk_id, self.id_dtype)
        self._id_of[to_codepoints(characters)] = np.arange(len(self.special_ids), self.vocab_size)
        self.start_id = self.bos_id if start == BOS else int(self._id_of[ord(start)])
        self.eos_id = self.bos_id if start == BOS else None  # where the next document would begin, this one ends

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The characters of `text`, sorted. New texts start after a newline; without one, after its first character.

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
        characters = "".join(map(chr, np.flatnonzero(known)))
        return cls(characters, start or ("\n" if "\n" in characters else first))

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of a text (T,) as an unsigned array; unknown characters become `<unk>`, with one warning."""
        ids = self._look_up(text)
        unknown = np.flatnonzero(ids == self.unk_id)
        if unknown.size:
            warn_unknown(text, unknown, UNK)
        return ids

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks; unknown characters become `<unk>` without a warning."""
        return map(self._look_up, blocks)

    def _look_up(self, text: str) -> np.ndarray:
        return self._id_of.take(to_codepoints(text), mode="clip")  # nothing is clipped; this mode is the fastest

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids: `<unk>` as U+FFFD, `<bos>` as nothing.

        Raises ValueError for an id outside the vocabulary.
        """
        return "".join(self._text_of[i] for i in check_decodable(ids, self.vocab_size))

    def to_plain(self) -> dict:
        """Plain data for a checkpoint."""
        return {"kind": self.kind, "characters": self.characters, "start": self.start}


# --- Byte-level BPE: the words of a text, inside which tokens are learned --------------------------------------------

END_OF_TEXT = "<|endoftext|>"  # GPT-2's special token, which stands where ours have <bos>
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# The words of GPT-2 (Radford et al. 2019): contractions, letters, numbers, the rest (each with the space before it),
# and white space, of which the last space is left to the word that follows.
WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# The time to encode a word grows with the square of its length, and a text may be one word: longer ones are cut.
LONG_WORD = re.compile(r"\S{256}|\s{256}", re.ASCII)
PIECE = re.compile(r".{1,65536}(?<=\S)(?=[ \n])|.{65536}", re.DOTALL)  # as many words as fit into 2**16 characters


class KindTable(dict):
    """A table for `str.translate` that leaves ASCII alone, and writes any other character as an ASCII one of its kind:
    letter, number, white space or the rest. So a rule about kinds of characters can be written for ASCII.

    >>> "l'été 北京 ½ €".translate(KINDS)
    "l'ata aa 0 !"
    """

    def __missing__(self, codepoint: int) -> str:
        category = unicodedata.category(chr(codepoint))  # "Lu" is an upper-case letter, "Nd" a decimal digit, …
        self[codepoint] = {"L": "a", "N": "0", "Z": "\n"}.get(category[0], "!")
        return self[codepoint]


KINDS = KindTable({codepoint: chr(codepoint) for codepoint in range(128)} | {0x85: "\n"})  # U+0085: next line


def split_words(text: str) -> Iterator[str]:
    """The words of a text by GPT-2's rule; together they are the text. No token reaches from one into the next.

    >>> list(split_words("I'll pay 20 pounds!  Now"))
    ['I', "'ll", ' pay', ' 20', ' pounds', '!', ' ', ' Now']
    """
    kinds = text.translate(KINDS)
    cuts = [edge for found in LONG_WORD.finditer(kinds) for edge in found.span()]
    for start, end in pairwise([0, *cuts, len(text)]):
        for found in WORD.finditer(kinds, start, end):
            yield text[found.start() : found.end()]


def cut_between_words(blocks: Iterable[str]) -> Iterator[str]:
    """A text that comes in blocks, in pieces of at most 2**16 characters that end where a word ends and white space
    begins: the pieces have the ids of the whole. A stretch of 2**16 characters without such a place is cut anyway.
    """
    rest = ""
    for block in blocks:
        text, end = rest + block, 0
        while found := PIECE.match(text, end):
            yield found[0]
            end = found.end()
        rest = text[end:]
    if rest:
        yield rest


# --- Byte-level BPE: learning ----------------------------------------------------------------------------------------


def byte_symbols() -> list[str]:
    """GPT-2's way to write byte b as one visible character: printable ones as they are, the 68 others from U+0100.

    >>> byte_symbols()[65], byte_symbols()[32]
    ('A', 'Ġ')
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 256 + 68))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


SYMBOLS = byte_symbols()
BYTE_OF = {symbol: byte for byte, symbol in enumerate(SYMBOLS)}
MIN_VOCAB_SIZE = 1 + len(SYMBOLS)  # <bos> and every byte


def merge(word: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """The word with one token in place of each occurrence of the pair, from the left.

    >>> merge([1, 2, 3, 1, 2], (1, 2), 4)
    [4, 3, 4]
    """
    merged = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new_id
        else:
            merged.append(token)
    return merged


def learn_merges(words: list[list[int]], counts: list[int], new_ids: Iterable[int]) -> list[tuple[int, int]]:
    """The pairs of ids to merge, each into the next of new_ids: the most frequent pair of neighbours, again and again.

    counts: how often each word occurs. Of equally frequent pairs, the one with the smaller ids comes first. Fewer
    pairs are returned if nothing is left to merge.
    """
    frequency, users = Counter(), defaultdict(set)  # of each pair: how often it occurs, and in which words
    for number, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += counts[number]
            users[pair].add(number)
    merges = []
    for new_id in new_ids:
        highest = max(frequency.values(), default=0)
        if highest == 0:
            break
        best = min(pair for pair, count in frequency.items() if count == highest)
        merges.append(best)
        for number in users.pop(best):  # only the words with this pair change, so only their pairs are counted anew
            for pair in pairwise(words[number]):
                frequency[pair] -= counts[number]
            words[number] = merge(words[number], best, new_id)
            for pair in pairwise(words[number]):
                frequency[pair] += counts[number]
                users[pair].add(number)
    return merges


class BPETokenizer(Tokenizer):
    """Byte-pair encoding (Sennrich et al. 2016) on bytes (Radford et al. 2019).

    Frequent sequences of characters become one token, so the same window holds a longer text.
    A text is split into words and a word into its UTF-8 bytes; then pairs of neighbours are merged, the pair that was
    learned first before all others. Every byte is a token, so no text is unknown. Tokens are written in `SYMBOLS`.

    >>> tokenizer = BPETokenizer.train(["the cat sat on the mat"], 259)
    >>> tokenizer.merges
    [('a', 't'), ('h', 'e')]
    >>> [tokenizer.tokens[i] for i in tokenizer.encode("that hat")]
    ['t', 'h', 'at', 'Ġ', 'h', 'at']
    """

    kind = "bpe"
    unk_id = None

    def __init__(self, tokens: list[str], merges: list[tuple[str, str]], start: str = BOS):
        """tokens: the vocabulary in the order of ids; merges: pairs of tokens whose sum is a token, in the order in
        which they were learned; start: what a text without a prompt begins after, `<bos>` or a newline.

        A vocabulary without `<bos>` has GPT-2's `<|endoftext|>` instead: it serves as `<bos>` and ends a text.
        """
        id_of = {token: number for number, token in enumerate(tokens)}
        self.tokens, self.merges, self.start = tokens, merges, start
        self.vocab_size = len(tokens)
        self.id_dtype = id_dtype(self.vocab_size)
        self.bos = BOS if BOS in id_of else END_OF_TEXT
        self.bos_id = id_of[self.bos]
        self.eos_id = self.bos_id if start == BOS or self.bos == END_OF_TEXT else None
        self.special_ids = (self.bos_id,)
        self.start_id = self.bos_id if start == BOS else id_of[SYMBOLS[ord(start)]]
        self._bytes_of = [b"" if token == self.bos else bytes(BYTE_OF[c] for c in token) for token in tokens]
        self._id_of_byte = [id_of[symbol] for symbol in SYMBOLS]
        # Pair of ids -> when it was learned, and the id of the merged token.
        self._merges = {(id_of[a], id_of[b]): (rank, id_of[a + b]) for rank, (a, b) in enumerate(merges)}
        self._encode_word = functools.lru_cache(2**15)(self.encode_word)  # most words of a text occur many times

    @classmethod
    def train(cls, pieces: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn a vocabulary of vocab_size tokens (at least MIN_VOCAB_SIZE), fewer if nothing is left to merge.

        pieces: of a text or of many; no word reaches from one into the next (see `cut_between_words`).
        """
        counts = Counter(word for piece in pieces for word in split_words(piece))
        tokens, merges = [BOS, *sorted(SYMBOLS)], []
        id_of_byte = [tokens.index(symbol) for symbol in SYMBOLS]
        words = [[id_of_byte[byte] for byte in word.encode()] for word in counts]
        for left, right in learn_merges(words, list(counts.values()), range(len(tokens), vocab_size)):
            merges.append((tokens[left], tokens[right]))
            tokens.append(tokens[left] + tokens[right])
        return cls(tokens, merges)

    def encode_word(self, word: str) -> list[int]:
        """The ids of one word: its bytes, merged in the order in which the merges were learned."""
        ids = [self._id_of_byte[byte] for byte in word.encode()]
        while found := [(*self._merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in self._merges]:
            _, merged, i = min(found)  # the earliest merge, and of its places the leftmost
            ids[i : i + 2] = [merged]
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of a text (T,) as an unsigned array. No character is unknown to a byte-level tokenizer.

        Half a surrogate pair is not a character: it becomes U+FFFD, with one warning.
        """
        positions = [found.start() for found in LONE_SURROGATE.finditer(text)]
        if positions:
            warn_unknown(text, positions, REPLACEMENT)
            text = LONE_SURROGATE.sub(REPLACEMENT, text)
        return np.concatenate([np.zeros(0, self.id_dtype), *self.encode_blocks([text])])

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks, the same as of the whole text."""
        for piece in cut_between_words(blocks):
            ids = [i for word in split_words(piece) for i in self._encode_word(word)]
            yield np.array(ids, self.id_dtype)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; bytes that are not a whole character become U+FFFD, the special token nothing.

        Raises ValueError for an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of some ids, for whoever gets a character's bytes one token at a time."""
        return b"".join(self._bytes_of[i] for i in check_decodable(ids, self.vocab_size))

    def to_plain(self) -> dict:
        """Plain data for a checkpoint."""
        return {"kind": self.kind, "tokens": self.tokens, "merges": self.merges, "start": self.start}
