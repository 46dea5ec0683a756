"""Streamed text against the text in one piece, with every way to cut it into tokens."""

from itertools import pairwise
from random import Random

from sampling.text_stream import TextStream


class Pieces:
    """A tokenizer whose token i is the i-th of some pieces."""

    eos_id = None

    def __init__(self, pieces: list[str]):
        self.pieces = pieces

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)


class Bytes:
    """A tokenizer whose tokens are bytes, as byte-level BPE's shortest ones are."""

    eos_id = None

    def decode_bytes(self, ids):
        return bytes(ids)


def streamed(tokenizer, tokens, stops=()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stops)
    shown = []
    for token in tokens:
        if stream.stopped:
            break
        shown.append(stream.add(token))
    return [*shown, stream.finish()], stream


def expected_text(text: str, stops: tuple[str, ...]) -> str:
    """The definition: the stop string that is complete first ends the text, the longest of those that end together."""
    ends = [(text.index(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not ends:
        return text
    end, length = min(ends)
    return text[: end + length]


def test_stop_strings_whatever_the_tokens():
    """Random texts and stop strings of two letters, so that they overlap and begin in vain; random ways to cut."""
    random = Random(0)
    for _ in range(5_000):
        text = "".join(random.choices("ab", k=random.randrange(14)))
        stops = tuple("".join(random.choices("ab", k=random.randint(1, 4))) for _ in range(random.randrange(4)))
        cuts = sorted(random.choices(range(len(text) + 1), k=random.randrange(8)))
        pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        shown, stream = streamed(Pieces(pieces), range(len(pieces)), stops)
        assert "".join(shown) == expected_text(text, stops), (pieces, stops)
        assert stream.stopped == any(stop in text for stop in stops)


def test_text_is_shown_but_for_what_may_begin_a_stop_string():
    stream = TextStream(Pieces(["a", "b", "s", "t", "x"]), ("sto",))
    assert [stream.add(token) for token in range(5)] == ["", "", "a", "b", "s"] and stream.finish() == "tx"


def test_bytes_are_shown_as_python_decodes_them():
    """Whole characters, whatever their bytes, which may be stop strings; broken ones as U+FFFD."""
    random = Random(0)
    for stops in [(), ("é",), ("€𝄞", "a")]:
        for _ in range(2_000):
            data = bytes(random.choices("aé€𝄞".encode() + b"\x80\xff\xed\xa0", k=random.randrange(12)))
            shown, _ = streamed(Bytes(), data, stops)
            assert "".join(shown) == expected_text(data.decode("utf-8", "replace"), stops), data
    shown, _ = streamed(Bytes(), "a€b𝄞".encode())
    assert [piece for piece in shown if piece] == list("a€b𝄞")


def test_an_incomplete_character_before_the_end_of_text_is_shown():
    """It was lost: the end-of-text token stopped the stream before the decoder gave what it held."""
    tokenizer = Bytes()
    tokenizer.eos_id = 0
    tokenizer.decode_bytes = lambda ids: bytes(i for i in ids if i)
    shown, stream = streamed(tokenizer, [*b"st", 0xC3, 0, *b"more"], ("sto",))
    assert "".join(shown) == "st\N{REPLACEMENT CHARACTER}" and stream.stopped
