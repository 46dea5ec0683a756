"""Byte-level BPE by the `tokenizers` package (Hugging Face): for large texts, where it is installed."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from corpora.tokenizer_files import bpe_from_json, bpe_to_json
from support.command import interruptible
from tokenizer import BOS, SYMBOLS, BPETokenizer, Tokenizer, cut_between_words, split_words

MIN_CHARACTERS = 2**22  # characters
WORDS = ["I", "'ll", " pay", " 1234", " pounds", "!?", " ", " Now", "\n\n", " é"]  # of a text, by GPT-2's rule


def splits_like_gpt2() -> bool:
    """Whether `tokenizer.py` still cuts a text into the words that other programs cut it into."""
    return list(split_words("".join(WORDS))) == WORDS


def bpe_class(characters: int) -> type[BPETokenizer]:
    """The class that trains on, or encodes, a text of so many characters: `FastBPETokenizer` from MIN_CHARACTERS on,
    if the package is installed, and cuts a text into words as `tokenizer.py` does.

    Below that size plain Python takes seconds, and what runs is what a reader of tokenizer.py has read. Measured
    roughly on a million characters, in seconds of one core: plain Python learns 1,024 tokens in 1.0, 4,096 in 4, and
    encodes in 0.4; the package learns both in 0.6 and encodes in 0.6, but it shares encoding among all cores.
    """
    usable = characters >= MIN_CHARACTERS and importlib.util.find_spec("tokenizers") and splits_like_gpt2()
    return FastBPETokenizer if usable else BPETokenizer


def for_length(tokenizer: Tokenizer, characters: int) -> Tokenizer:
    """An equal tokenizer for a text of so many characters: a `BPETokenizer` becomes what `bpe_class` says."""
    if type(tokenizer) is not BPETokenizer or bpe_class(characters) is BPETokenizer:
        return tokenizer
    return FastBPETokenizer(tokenizer.tokens, tokenizer.merges, tokenizer.start)


class FastBPETokenizer(BPETokenizer):
    """A `BPETokenizer` whose texts are read by the package. Whoever makes one has looked for the package first."""

    def __init__(self, tokens: list[str], merges: list[tuple[str, str]], start: str = BOS):
        super().__init__(tokens, merges, start)
        from tokenizers import Tokenizer as Library

        self._library = Library.from_str(bpe_to_json(self))

    @classmethod
    def train(cls, pieces: Iterable[str], vocab_size: int) -> "FastBPETokenizer":
        """Learn a vocabulary, the same as `BPETokenizer.train` learns."""
        from tokenizers.trainers import BpeTrainer

        learner = cls([BOS, *sorted(SYMBOLS)], [])._library
        options = {"initial_alphabet": sorted(SYMBOLS), "show_progress": sys.stderr.isatty()}
        trainer = BpeTrainer(vocab_size=vocab_size, special_tokens=[BOS], **options)
        interruptible(lambda: learner.train_from_iterator(pieces, trainer))
        learned = bpe_from_json(learner.to_str())
        return cls(learned.tokens, learned.merges)

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks, the same as of the whole text."""
        pieces = cut_between_words(blocks)
        while batch := list(islice(pieces, 32)):
            encoded = self._library.encode_batch_fast(batch)
            yield np.concatenate([np.array(one.ids, self.id_dtype) for one in encoded])
