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


@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
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
    (ids,) = tokenizer.encode_blocks([text])
    assert tokenizer.decode(ids) == "".join(c if c in known else "\ufffd" for c in text)


def test_ids_follow_the_special_tokens_in_the_order_of_the_vocabulary():
    assert CharTokenizer.from_text("ba").encode("ab") == [2, 3]
    grown = tokenizer_from_plain({"kind": "char", "characters": "bé🙂a", "start": "é"})
    assert grown.encode("abé🙂") == [5, 2, 3, 4] and grown.start_id == 3
    assert grown.decode([0, 1, 5, 2, 3, 4]) == "\ufffdabé🙂"
    assert grown.to_plain()["characters"] == "bé🙂a"
    assert all(type(i) is int for i in TOKENIZER.encode("hello"))
    assert TOKENIZER.encode_array("hello").dtype == np.uint16
    assert TOKENIZER.encode("") == [] and TOKENIZER.decode([]) == ""


def test_unknown_characters_warn_once_with_names_and_positions():
    with pytest.warns(UnknownCharacterWarning) as caught:
        TOKENIZER.encode("héllo wörldé")
    assert len(caught) == 1
    for words in ("'é' (U+00E9) at 1", "' ' (U+0020) at 5", "'ö' (U+00F6) at 7"):
        assert words in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOKENIZER.encode("hello")


def test_wrong_ids_are_refused():
    for ids in ([-1], [100], [[2, 3]], [2.5]):
        with pytest.raises(ValueError):
            TOKENIZER.decode(ids)


@pytest.mark.parametrize("text, start", [("one\ntwo", "\n"), ("no line ends here", "n"), ("<bos>", "<")])
def test_a_text_without_prompt_starts_after_a_trained_token(text, start):
    assert CharTokenizer.from_text(text).decode([CharTokenizer.from_text(text).start_id]) == start


@pytest.mark.parametrize(
    "plain",
    [
        *(None, {}, {"kind": "bytes", "start": "a"}, {"kind": "char", "characters": "ab"}),
        *({"kind": "char", "characters": text, "start": "a"} for text in (5, "", "aba", "a" * 2**21)),
        *({"kind": "char", "characters": "ab", "start": start} for start in ("c", "ab", "")),
    ],
)
def test_damaged_descriptions_are_refused(plain):
    with pytest.raises(ValueError):
        tokenizer_from_plain(plain)
    with pytest.raises(ValueError, match="empty"):
        CharTokenizer.from_text("")
