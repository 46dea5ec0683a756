"""Tokenizers as files: `tokenizer.json`, and the plain data of a checkpoint. Both may come from anyone."""

import json
import sys
from pathlib import Path

from support.command import UserError, user_errors
from support.plain import MAX_JSON, check_fields, parse_json
from tokenizer import BOS, BYTE_OF, END_OF_TEXT, LONE_SURROGATE, LONG_WORD, BPETokenizer, CharTokenizer, Tokenizer


def tokenizer_from_plain(plain: dict) -> Tokenizer:
    """The tokenizer that `to_plain` described. Raises ValueError if the description is damaged or of another kind."""
    check_fields(plain, {"kind": str, "start": str})
    if plain["kind"] == CharTokenizer.kind:
        check_fields(plain, {"characters": str})
        return checked_characters(plain["characters"], plain["start"])
    if plain["kind"] == BPETokenizer.kind:
        check_fields(plain, {"tokens": list, "merges": list})
        return checked_bpe(plain["tokens"], plain["merges"], plain["start"])
    raise ValueError("the tokenizer is of a kind that this version does not know")


def checked_characters(characters: str, start: str) -> CharTokenizer:
    """The tokenizer of these. Raises ValueError if no `CharTokenizer` has them."""
    # A text longer than Unicode must hold a character twice; to look for it in millions of them takes memory.
    if not 0 < len(characters) <= sys.maxunicode + 1 or len(set(characters)) < len(characters):
        raise ValueError("a character vocabulary must hold at least one character, and each only once")
    if LONE_SURROGATE.search(characters):
        raise ValueError("its vocabulary holds half a surrogate pair, which is not a character")
    if start != BOS and (len(start) != 1 or start not in characters):
        raise ValueError(f"the start token {start[:20]!r} is not in the character vocabulary")
    return CharTokenizer(characters, start)


def checked_bpe(tokens: list, merges: list, start: str) -> BPETokenizer:
    """The tokenizer of these. Raises ValueError if no `BPETokenizer` has them."""
    known = {token for token in tokens if isinstance(token, str) and BYTE_OF.keys() >= set(token)}
    if len(known) < len(tokens):
        raise ValueError("its tokens are not words of byte symbols, each only once")
    if not known >= BYTE_OF.keys() or known.isdisjoint((BOS, END_OF_TEXT)):
        raise ValueError(f"its vocabulary must hold {BOS} or {END_OF_TEXT}, and every byte")
    if not merges_fit(merges, known):
        raise ValueError("its merges do not fit its vocabulary")
    if start not in (BOS, "\n"):
        raise ValueError(f"a text must start after {BOS} or a newline, not {start[:20]!r}")
    return BPETokenizer(tokens, [(left, right) for left, right in merges], start)


def merges_fit(merges: list, tokens: set[str]) -> bool:
    """Whether each merge is a pair of tokens that make a third."""
    try:
        return all(tokens >= {left, right, left + right} for left, right in merges)
    except (TypeError, ValueError):
        return False


def bpe_from_json(text: str, start: str = BOS) -> BPETokenizer:
    """The tokenizer in the text of a `tokenizer.json`, of which only vocabulary and merges are used.

    start: what a text without a prompt begins after, `<bos>` or a newline. Raises ValueError if it is not a byte-level
    BPE.
    """
    content = parse_json(text)
    check_fields(content, {"model": dict})
    check_fields(content["model"], {"vocab": dict, "merges": list})
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    numbers = list(vocabulary.values())
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise ValueError("its ids are not 0, 1, 2, …")
    # Old files have a merge as one string, "a b".
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return checked_bpe(sorted(vocabulary, key=vocabulary.get), merges, start)


def load_bpe(path: Path, start: str = BOS) -> BPETokenizer:
    """The tokenizer in a `tokenizer.json`. Raises UserError if the file holds none, OSError if it cannot be read."""
    if not path.is_file():
        raise UserError(f"--tokenizer {path}: no such file; make one with: python train_tokenizer.py")
    with user_errors(f"--tokenizer {path}: not a file of train_tokenizer.py: "), open(path, encoding="utf-8") as file:
        return bpe_from_json(file.read(MAX_JSON + 1), start)


def bpe_to_json(tokenizer: BPETokenizer) -> str:
    """The text of a `tokenizer.json`, as the `tokenizers` package writes it for an equal tokenizer."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    long_words = {"type": "Split", "pattern": {"Regex": LONG_WORD.pattern}, "behavior": "Isolated", "invert": False}
    unused = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    switches = ("fuse_unk", "byte_fallback", "ignore_merges")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [long_words, byte_level]},
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            **dict.fromkeys(unused),
            **dict.fromkeys(switches, False),
            "vocab": {token: number for number, token in enumerate(tokenizer.tokens)},
            "merges": tokenizer.merges,
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=2)
