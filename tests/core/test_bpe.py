"""Byte-level BPE: round trips, the library as oracle, the training script, hostile files, a whole run."""

import hashlib
import io
import json
import math
import os
import re
import signal
import sys
import threading
import time

import pytest

from conftest import environment
from corpora.bpe import BPETokenizer, byte_symbols, cut_between_words, tokenizer_from_plain
from corpora.synthetic import synthetic_text
from corpora.texts import encode_split
from data_setup import split_documents
from formats.checkpoint import load_model
from helpers import SMALL_NETWORK, assert_one_error_line
from support.command import UserError, interruptible
from tokenizer import UnknownCharacterWarning

library = pytest.importorskip("tokenizers")

CONTROLS = set(map(chr, [*range(32), *range(127, 160)])) - {"\n", "\t"}
TEXT = synthetic_text(30_000)[0]
TOKENIZER = BPETokenizer.train([TEXT], 400)
ODD_TEXTS = [
    "",
    " ",
    "<bos>",
    "a<bos>b",
    "naïve Übermut, 日本語 and 🙂!",
    "tabs\tand \x00\x01\x1c\x1f\x7f\x85\u2028 odd   spaces \n\n\n  x",
    "\ufeffa byte order mark",
    TEXT[:3000],
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_text_round_trips_and_no_text_holds_a_special_token(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(TOKENIZER.special_ids)


def test_round_trip_of_any_text():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(text=hypothesis.strategies.text())
    def check(text):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text

    check()


def test_the_library_agrees():
    """The file is an ordinary tokenizer.json: the library reads it, encodes alike, and decodes alike."""
    theirs = library.Tokenizer.from_str(TOKENIZER.to_json())
    assert theirs.get_vocab_size() == TOKENIZER.vocab_size == 400
    for text in ODD_TEXTS:
        ids = TOKENIZER.encode(text)
        assert ids == theirs.encode(text).ids
        for end in range(min(len(ids), 50)):  # ends in the middle of a character included
            assert TOKENIZER.decode(ids[:end]) == theirs.decode(ids[:end])


def test_byte_symbols_are_the_librarys_alphabet():
    symbols = byte_symbols()
    assert set(symbols) == set(library.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(symbols.values()) == list(range(256))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_text_in_pieces_has_the_ids_of_the_whole(size):
    theirs = library.Tokenizer.from_str(TOKENIZER.to_json())
    text = "".join(ODD_TEXTS) + TEXT[:5000]
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    # Long enough that no stretch without a word's end is cut.
    pieces = [piece for piece in cut_between_words(blocks, 100)]
    assert len(pieces) > 20 and "".join(pieces) == text
    assert [i for piece in pieces for i in theirs.encode(piece).ids] == theirs.encode(text).ids
    assert [i for ids in TOKENIZER.encode_blocks(blocks) for i in ids] == theirs.encode(text).ids


def test_a_text_without_word_ends_is_cut_anyway():
    pieces = list(cut_between_words(["x" * 250], 100))
    assert [len(piece) for piece in pieces] == [100, 100, 50]


@pytest.mark.parametrize("run", ["acgt" * 500, "日" * 700, " " * 900, "ab" + "-" * 1000 + "\n\ncd"])
def test_words_are_cut_to_a_bounded_length_by_us_and_by_the_file(run):
    """A word of n bytes costs n² steps: a text without white space took minutes."""
    theirs = library.Tokenizer.from_str(TOKENIZER.to_json())
    text = f"one {run} two\n{run}"
    words = theirs.pre_tokenizer.pre_tokenize_str(text)
    assert max(len(word) for word, _ in words) <= 257 * 4
    assert TOKENIZER.encode(text) == theirs.encode(text).ids
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_what_a_library_does():
    """A program that a shell started in the background begins with SIGINT ignored, as the gate may be."""
    earlier, started = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic()
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            interruptible(lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000_000))  # seconds in C, no lock held
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert time.monotonic() - started < 2


def test_what_work_raises_comes_through():
    def fail():
        raise UserError("as it was")

    with pytest.raises(UserError, match="as it was"):
        interruptible(fail)
    assert interruptible(lambda: 5) == 5


def test_half_a_surrogate_pair_is_no_character():
    with pytest.warns(UnknownCharacterWarning, match="U\\+D800.* at 1"):
        assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a\ufffdb"


def test_it_travels_as_plain_data():
    copy = tokenizer_from_plain(json.loads(json.dumps(TOKENIZER.to_plain())))
    assert copy.encode(TEXT) == TOKENIZER.encode(TEXT)
    assert (copy.vocab_size, copy.start_id, copy.bos_id) == (400, TOKENIZER.start_id, TOKENIZER.bos_id)


def test_where_a_text_starts():
    assert TOKENIZER.start_id == TOKENIZER.bos_id and TOKENIZER.decode([TOKENIZER.bos_id]) == ""
    assert TOKENIZER.decode([BPETokenizer(TOKENIZER.to_json(), start="\n").start_id]) == "\n"


def test_ids_outside_the_vocabulary_are_refused():
    for ids in ([400], [-1], [0.5]):
        with pytest.raises(ValueError):
            TOKENIZER.decode(ids)


def changed(**model) -> str:
    content = json.loads(TOKENIZER.to_json())
    content["model"] |= model
    return json.dumps(content)


VOCABULARY = json.loads(TOKENIZER.to_json())["model"]["vocab"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"model": {}}',
        "[" * 100_000,
        "[" + "[]," * 2**20 + "[]]",  # 3 MB that would take hundreds
        changed(vocab={}),
        changed(vocab=[]),
        changed(vocab={token: i for token, i in VOCABULARY.items() if token != "<bos>"}),
        changed(vocab={token: i + 1 for token, i in VOCABULARY.items()}),
        changed(vocab={token: str(i) for token, i in VOCABULARY.items()}),
        changed(vocab=VOCABULARY | {"日": 400}),
        changed(merges=[["q", "nowhere"]]),
        changed(merges=[["q"]]),
        changed(merges=5),
    ],
)
def test_damaged_files_are_refused(text, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="t.json"):
        BPETokenizer.load(path)
    with pytest.raises(ValueError):
        tokenizer_from_plain({"kind": "bpe", "json": text, "start": "\n"})


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# --- Through the commands ----------------------------------------------------------------------------------------


def test_train_show_and_a_whole_run(in_process, tmp_path):
    def run(*arguments):
        code, out, err = in_process(*arguments)
        assert code == 0, err
        return out

    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    out = run("train_tokenizer.py", "--data", "my.txt", "--vocab-size", 300, "--out", "t.json")
    assert "300 tokens" in out
    # Learned from the training part only.
    theirs = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert theirs == json.loads(BPETokenizer.train([TEXT[:27_000]], 300).to_json())

    shown = re.findall(r"(\S+)\((\d+)\)", run("train_tokenizer.py", "--tokenizer", "t.json", "--show", "the é"))
    tokenizer = BPETokenizer.load(tmp_path / "t.json")
    assert [int(token_id) for _, token_id in shown] == tokenizer.encode("the é")
    assert "".join(piece for piece, _ in shown) == r"the␣\xc3\xa9"

    flags = [*SMALL_NETWORK, "--data", "my.txt", "--eval-every", "2", "--out", "a.pth"]
    out = run("main.py", *flags, "--tokenizer", "t.json", "--steps", "4", "--stop-at", "2")
    assert "nats per character" in out and "bits per byte" in out
    (tmp_path / "t.json").unlink()  # the tokenizer travels inside the checkpoint
    run("main.py", "--resume", "--out", "a.pth")
    line = json.loads((tmp_path / "a.metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    targets = len(tokenizer.encode(TEXT[27_000:])) - 1
    assert line["val_nats_per_character"] == pytest.approx(line["val_loss"] * targets / 3000)
    assert line["val_bits_per_byte"] == pytest.approx(line["val_nats_per_character"] / math.log(2))  # all of it ASCII
    assert load_model(tmp_path / "a.pth").tokenizer.vocab_size == 300
    out = run("generate.py", "--checkpoint", "a.pth", "--prompt", "KING é", "--max-new-tokens", 5, "--seed", 1)
    assert out.startswith("KING é")


def test_one_line_errors(in_process, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    code, _, err = in_process("train_tokenizer.py", "--data", "my.txt", "--vocab-size", 256)
    assert code == 2
    assert_one_error_line(err, "--vocab-size", "257")
    assert not (tmp_path / "tokenizer.json").exists()
    code, _, err = in_process("main.py", *SMALL_NETWORK, "--data", "my.txt", "--tokenizer", "my.txt")
    assert code == 2
    assert_one_error_line(err, "--tokenizer my.txt", "JSON is damaged")


def test_no_other_file_is_overwritten(in_process, tmp_path):
    """`--out my.txt` once replaced the corpus that it had learned from."""
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    flags = ["--data", "my.txt", "--vocab-size", 260]
    for out, words in (("my.txt", "--force"), ("folder", "not a regular file")):
        code, _, err = in_process("train_tokenizer.py", *flags, "--out", out)
        assert code == 2
        assert_one_error_line(err, out, words)
    assert (tmp_path / "my.txt").read_text(encoding="utf-8") == TEXT
    assert in_process("train_tokenizer.py", *flags, "--out", "t.json")[0] == 0
    assert in_process("train_tokenizer.py", *flags[:-1], 270, "--out", "t.json")[0] == 0  # its own earlier output
    assert BPETokenizer.load(tmp_path / "t.json").vocab_size == 270
    assert in_process("train_tokenizer.py", *flags, "--out", "my.txt", "--force")[0] == 0
    assert BPETokenizer.load(tmp_path / "my.txt").vocab_size == 260


@pytest.mark.parametrize(
    "flags, flag", [(["--show", "x", "--data", "y"], "--data"), (["--tokenizer", "x"], "--tokenizer")]
)
def test_a_flag_that_would_do_nothing_is_refused(in_process, flags, flag):
    code, _, err = in_process("train_tokenizer.py", *flags)
    assert code == 2
    assert_one_error_line(err, flag, "does nothing")


def test_a_vocabulary_cannot_steer_the_terminal(in_process, tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text(TOKENIZER.to_json(), encoding="utf-8")
    show = ["train_tokenizer.py", "--tokenizer", "t.json", "--show", "a\x1b]52;c;eA==\x07b\tc\x9b"]
    assert "\x1b" in in_process(*show)[1]  # in a pipe it stays
    monkeypatch.setattr(sys, "stdout", Terminal())
    in_process(*show)
    assert sys.stdout.getvalue().isprintable() is False and set(sys.stdout.getvalue()) & CONTROLS == set()
    assert r"\x1b" in sys.stdout.getvalue() and r"\x07" in sys.stdout.getvalue()


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    for name, words in (("bad.json", "utf-8"), ("none.json", "no such file"), (".", "no such file")):
        with pytest.raises(UserError, match=words):
            BPETokenizer.load(tmp_path / name)


def test_without_the_library_the_error_says_what_to_install(command, tmp_path):
    (tmp_path / "tokenizers.py").write_text("raise ImportError\n", encoding="utf-8")
    (tmp_path / "t.json").write_text(TOKENIZER.to_json(), encoding="utf-8")
    env = environment(PYTHONPATH=str(tmp_path))
    done = command("train_tokenizer.py", "--tokenizer", "t.json", "--show", "x", code=2, env=env)
    assert_one_error_line(done.stderr, "pip install tokenizers")


def test_a_split_becomes_the_same_ids_as_its_text(tmp_path):
    corpus = split_documents("my", [TEXT])
    assert encode_split(TOKENIZER, corpus.val, tmp_path).tolist() == TOKENIZER.encode(corpus.val.text())
    assert list(tmp_path.iterdir()) == []  # a small one leaves no file behind
