"""Byte-level BPE, on the Hugging Face `tokenizers` library.

Byte-pair encoding (Sennrich et al. 2016) on bytes (Radford et al. 2019): a text is split into words, a word into its
UTF-8 bytes, and the most frequent pair of neighbours is merged into a new token, again and again. Every byte is a token
of its own, so no text is ever unknown.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np

from support.command import UserError, interruptible, one_line, optional_package, user_errors
from support.plain import check_fields, parse_json
from tokenizer import BOS, REPLACEMENT, CharTokenizer, check_decodable, id_dtype, warn_unknown


def byte_symbols() -> dict[str, int]:
    """GPT-2's way to write any byte as one visible character: printable ones as they are, the 68 others from U+0100.

    >>> byte_symbols()["A"], byte_symbols()["\u0120"]
    (65, 32)
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF = byte_symbols()
END_OF_TEXT = "<|endoftext|>"  # GPT-2's special token, which stands where ours have <bos>
MIN_VOCAB_SIZE = len(BYTE_OF) + 1  # every byte and <bos>
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# BPE takes a time that grows with the square of a word's length, and a text may be one word.
LONG_WORD = r"\S{256}|\s{256}"
WORD_END = re.compile(r".*\S(?=[ \n])", re.DOTALL)  # up to the last place where a word ends


def import_library() -> ModuleType:
    """The `tokenizers` package; UserError that says how to get it if it is not installed."""
    return optional_package("tokenizers", "byte-level BPE")


def cut_between_words(blocks: Iterable[str], size: int = 2**16) -> Iterator[str]:
    """The same text in pieces of about `size` characters, cut where a word ends and white space begins.

    BPE never merges across such a place, so the pieces have the ids of the whole. A stretch of `size` characters
    without one is cut where it ends.
    """
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > size:
            found = WORD_END.match(rest, start, start + size)
            end = found.end() if found else start + size
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


class BPETokenizer:
    """Byte-level BPE. The file form is a `tokenizer.json` of the `tokenizers` library with a token `<bos>`.

    A vocabulary without `<bos>` may have GPT-2's `<|endoftext|>` instead: it serves as `<bos>` and ends a text.
    """

    kind = "bpe"
    unk_id = None  # no text is unknown

    def __init__(self, text: str, start: str = BOS):
        """text: the JSON; start: what a text without a prompt begins after, `<bos>` or a newline.

        Of the JSON only vocabulary and merges are used. Raises ValueError if they are not those of a byte-level BPE.
        """
        try:
            model = parse_json(text)["model"]
            vocabulary = model["vocab"]
            # Old files have a merge as one string, "a b".
            self.merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
            self.bos = BOS if BOS in vocabulary else END_OF_TEXT
            self.tokens = sorted(vocabulary, key=vocabulary.get)
            ids = [vocabulary[token] for token in self.tokens]
            if ids != list(range(len(ids))) or any(type(i) is not int for i in ids):  # JSON's false is Python's 0
                raise ValueError("its ids are not 0, 1, 2, …")
            self._bytes = [b"" if token == self.bos else bytes(BYTE_OF[c] for c in token) for token in self.tokens]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no byte-level BPE ({type(error).__name__})") from None
        if not vocabulary.keys() >= {self.bos, *BYTE_OF}:
            raise ValueError(f"its vocabulary must hold {BOS} or {END_OF_TEXT}, and every byte")
        if start not in (BOS, "\n"):
            raise ValueError(f"a text must start after {BOS} or a newline, not {start[:20]!r}")
        self.library = byte_level(vocabulary, self.merges)
        self.start = start
        self.vocab_size = len(self.tokens)
        self.bos_id = vocabulary[self.bos]
        self.eos_id = self.bos_id if self.bos == END_OF_TEXT else None
        self.special_ids = (self.bos_id,)
        self.id_dtype = id_dtype(self.vocab_size)

    @classmethod
    def load(cls, path: Path, start: str = BOS) -> "BPETokenizer":
        """The tokenizer in a file. Raises UserError if it holds none, OSError if it cannot be read."""
        if not path.is_file():
            raise UserError(f"--tokenizer {path}: no such file; make one with: python train_tokenizer.py")
        with user_errors(f"--tokenizer {path}: "):
            return cls(path.read_text(encoding="utf-8"), start)

    @classmethod
    def train(cls, blocks: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn a vocabulary of vocab_size tokens (at least MIN_VOCAB_SIZE), fewer if nothing is left to merge."""
        library = byte_level({}, [])
        options = {"initial_alphabet": sorted(BYTE_OF), "show_progress": sys.stderr.isatty()}
        trainer = import_library().trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[BOS], **options)
        interruptible(lambda: library.train_from_iterator(cut_between_words(blocks), trainer))
        return cls(library.to_str())

    @property
    def start_id(self) -> int:
        """The token that a text with no prompt begins after."""
        return self.bos_id if self.start == BOS else self.encode(self.start)[0]

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks, the same as in one, at the library's speed on all cores."""
        pieces = cut_between_words(blocks)
        while batch := list(islice(pieces, 32)):
            encoded = self.library.encode_batch_fast(batch)
            yield np.concatenate([np.array(one.ids, self.id_dtype) for one in encoded])

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of a text (T,) as an unsigned array. No character is unknown to a byte-level tokenizer.

        Half a surrogate pair is no character: it becomes U+FFFD, with one warning.
        """
        positions = [found.start() for found in LONE_SURROGATE.finditer(text)]
        if positions:
            warn_unknown(text, positions, REPLACEMENT)
            text = LONE_SURROGATE.sub(REPLACEMENT, text)
        return np.concatenate([np.zeros(0, self.id_dtype), *self.encode_blocks([text])])

    def encode(self, text: str) -> list[int]:
        """`encode_array` as a list of ints."""
        return self.encode_array(text).tolist()

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; bytes that are no whole character become U+FFFD, the special token nothing.

        Raises ValueError for an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of some ids, for whoever gets a character's bytes one token at a time."""
        return b"".join(self._bytes[i] for i in check_decodable(ids, self.vocab_size))

    def to_plain(self) -> dict:
        """Plain data from which `tokenizer_from_plain` makes an equal tokenizer."""
        return {"kind": self.kind, "json": self.to_json(), "start": self.start}

    def to_json(self) -> str:
        """The text of a `tokenizer.json`."""
        return self.library.to_str(pretty=True)


def byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]]):
    """The library's tokenizer for these; ValueError if the merges do not fit the vocabulary."""
    library = import_library()
    try:
        tokenizer = library.Tokenizer(library.models.BPE(vocabulary, merges))
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"its merges do not fit its vocabulary ({one_line(error)})") from None
    words = library.pre_tokenizers
    cap = words.Split(library.Regex(LONG_WORD), "isolated")
    tokenizer.pre_tokenizer = words.Sequence([cap, words.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


Tokenizer = CharTokenizer | BPETokenizer


def tokenizer_from_plain(plain: dict) -> Tokenizer:
    """The tokenizer that `to_plain` described. Raises ValueError if the description is damaged or of another kind."""
    check_fields(plain, {"kind": str, "start": str})
    kinds = {CharTokenizer.kind: (CharTokenizer, "characters"), BPETokenizer.kind: (BPETokenizer, "json")}
    if plain["kind"] not in kinds:
        raise ValueError("the tokenizer is of a kind that this version does not know")
    make, content = kinds[plain["kind"]]
    check_fields(plain, {content: str})
    return make(plain[content], plain["start"])
