"""The character tokenizer: round trips over all of Unicode, unknown characters, special tokens, damage."""

import warnings

import numpy as np
import pytest

from corpora.tokenizer_files import tokenizer_from_plain
from tokenizer import CharTokenizer, UnknownCharacterWarning

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

TOKENIZER = CharTokenizer.from_text("hello\nworld")

ANY_TEXT = st.text(st.characters(), min_size=1)  # every code point, lone surrogates included


@given(text=ANY_TEXT)
def test_round_trip(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == len(set(text)) + 2
    assert not set(ids) & set(tokenizer.special_ids)
    assert tokenizer_from_plain(tokenizer.to_plain()).encode(text) == ids


@given(known=ANY_TEXT, text=ANY_TEXT)
def test_unknown_characters_by_brute_force(known, text):
    tokenizer = CharTokenizer.from_text(known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownCharacterWarning)
        replaced = tokenizer.decode(tokenizer.encode(text))
    assert replaced == "".join(c if c in known else "\ufffd" for c in text)


def test_ids_follow_the_special_tokens_in_the_order_of_the_vocabulary():
    assert CharTokenizer.from_text("ba").encode("ab") == [2, 3]
    grown = tokenizer_from_plain({"kind": "char", "characters": "bé🙂a", "start": "é"})
    assert grown.encode("abé🙂") == [5, 2, 3, 4] and grown.start_id == 3
    assert grown.decode([0, 1, 5, 2, 3, 4]) == "\ufffdabé🙂"
    assert grown.to_plain()["characters"] == "bé🙂a"


def test_encode_gives_ints_and_encode_array_the_smallest_dtype():
    assert all(type(i) is int for i in TOKENIZER.encode("hello"))
    assert TOKENIZER.encode_array("hello").dtype == np.uint16
    assert TOKENIZER.encode("") == [] and TOKENIZER.decode([]) == ""


def test_unknown_characters_warn_once_with_names_and_positions():
    with pytest.warns(UnknownCharacterWarning) as caught:
        ids = TOKENIZER.encode("héllo wörldé")
    assert len(caught) == 1
    for words in ("'é' (U+00E9) at 1", "' ' (U+0020) at 5", "'ö' (U+00F6) at 7"):
        assert words in str(caught[0].message)
    assert ids[1] == TOKENIZER.unk_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOKENIZER.encode("hello")


@pytest.mark.parametrize("ids", [[-1], [100], [[2, 3]], [2.5]])
def test_wrong_ids_are_refused(ids):
    with pytest.raises(ValueError):
        TOKENIZER.decode(ids)


@pytest.mark.parametrize("text, start", [("one\ntwo", "\n"), ("no line ends here", "n"), ("<bos>", "<")])
def test_a_text_without_prompt_starts_after_a_trained_token(text, start):
    assert CharTokenizer.from_text(text).decode([CharTokenizer.from_text(text).start_id]) == start


def test_empty_text_has_no_vocabulary():
    with pytest.raises(ValueError, match="empty"):
        CharTokenizer.from_text("")


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        {"kind": "bytes", "start": "a"},
        {"kind": "char", "characters": "ab"},
        {"kind": "char", "characters": 5, "start": "a"},
        {"kind": "char", "characters": "", "start": "a"},
        {"kind": "char", "characters": "aba", "start": "a"},
        {"kind": "char", "characters": "a" * 2**21, "start": "a"},
        {"kind": "char", "characters": "ab", "start": "c"},
        {"kind": "char", "characters": "ab", "start": "ab"},
    ],
)
def test_damaged_descriptions_are_refused(plain):
    with pytest.raises(ValueError):
        tokenizer_from_plain(plain)
