"""Streamed text against the text in one piece, with every way to cut it into tokens."""

import time
import tracemalloc
from itertools import combinations

import pytest

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


def ways_to_cut(text: str):
    for count in range(len(text)):
        for cuts in combinations(range(1, len(text)), count):
            edges = [0, *cuts, len(text)]
            yield [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def expected_text(text: str, stops: tuple[str, ...]) -> str:
    """The definition: the stop string that is complete first ends the text, the longest of those that end together."""
    ends = [(text.index(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not ends:
        return text
    end, length = min(ends)
    return text[: end + length]


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("abcabd", ("abd",)),  # a false start
        ("aabaaab", ("aaab",)),  # a prefix that overlaps itself
        ("xababac", ("abac",)),
        ("xyzzy", ("zz", "yz")),  # two that share a character
        ("abcdef", ("cde", "abcdeX", "d")),
        ("abcdef", ("bcd", "d")),  # two that end together
        ("ends in a", ("a stop",)),  # never complete
        ("stop", ("stop",)),
        ("a\n\nb", ("\n\n",)),
        ("plain", ()),
    ],
)
def test_stop_strings_whatever_the_tokens(text, stops):
    for pieces in ways_to_cut(text):
        shown, stream = streamed(Pieces(pieces), range(len(pieces)), stops)
        assert "".join(shown) == expected_text(text, stops), pieces
        assert stream.stopped == any(stop in text for stop in stops)


def test_stop_strings_against_the_definition():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
    def check(text, stops):
        shown, stream = streamed(Pieces(list(text)), range(len(text)), tuple(stops))
        assert "".join(shown) == expected_text(text, tuple(stops))

    check()


def test_text_is_shown_as_soon_as_it_is_certain():
    stream = TextStream(Pieces(["a", "b", "s", "t", "x"]), ("sto",))
    assert [stream.add(token) for token in range(5)] == ["a", "b", "", "", "stx"]


def test_bytes_are_shown_as_python_decodes_them():
    """Whole characters, whatever their bytes; broken ones as U+FFFD."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.given(st.binary(max_size=12) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "replace")))
    def check(data):
        shown, stream = streamed(Bytes(), data)
        assert "".join(shown) == data.decode("utf-8", "replace")

    check()


@pytest.mark.parametrize("text", ["é", "a€b", "𝄞𝄞", "naïve – 日本"])
def test_characters_of_several_bytes_come_whole(text):
    shown, _ = streamed(Bytes(), text.encode())
    assert [piece for piece in shown if piece] == list(text)


def test_an_incomplete_character_before_the_end_of_text_is_shown():
    """It was lost: the end-of-text token stopped the stream before the decoder gave what it held."""
    tokenizer = Bytes()
    tokenizer.eos_id = 0
    tokenizer.decode_bytes = lambda ids: bytes(i for i in ids if i)
    shown, stream = streamed(tokenizer, [*b"st", 0xC3, 0, *b"more"], ("sto",))
    assert "".join(shown) == "st\N{REPLACEMENT CHARACTER}" and stream.stopped


def test_stop_string_of_several_bytes():
    shown, stream = streamed(Bytes(), "déjà vu".encode(), ("à",))
    assert "".join(shown) == "déj" and stream.stopped


def test_a_long_text_is_as_fast_at_its_end_and_leaves_nothing_behind():
    """The text used to grow by `+=`: a million tokens took 4 s for the first quarter and 12.6 s for the last."""
    stream, length = TextStream(Pieces(["a", "stop"]), ("stop!",)), 200_000

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        for _ in range(tokens):
            stream.add(0)
        return time.perf_counter() - started

    tracemalloc.start()
    early = min(seconds(2_000) for _ in range(5))
    before = tracemalloc.get_traced_memory()[0]
    seconds(length)
    after = tracemalloc.get_traced_memory()[0]
    late = min(seconds(2_000) for _ in range(5))
    tracemalloc.stop()
    assert late < 2 * early and after - before < 10_000
