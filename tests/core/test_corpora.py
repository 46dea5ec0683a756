"""Corpora of every shape: folders, encodings, documents, and texts too large for memory."""

import hashlib
import os
import re

import numpy as np
import pytest

from conftest import environment
from corpora import texts
from corpora.texts import Split, TextSpan, encode_split, measure, read_blocks
from data_setup import ShiftedWindowDataset, consecutive_windows, load_corpus, split_documents
from helpers import ROOT, SMALL_NETWORK, assert_one_error_line
from support.command import UserError
from tokenizer import CharTokenizer

MIXED = "One, tŵo, 三, 🙂.\r\nnext\rlast\n"


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few bytes, so that every seam is met: within a character, within CRLF, within the mark."""
    monkeypatch.setattr(texts, "BLOCK", 3)


def written(path, data: bytes):
    path.write_bytes(data)
    return path


# --- Reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_any_block_size_reads_what_python_reads(tmp_path, monkeypatch, size):
    monkeypatch.setattr(texts, "BLOCK", size)
    for content in (MIXED, "\ufeff" + MIXED, "\ufeff", "", "\r", "a\r\n", "\r\r\n\n", "x\ufeff"):
        path = written(tmp_path / "a.txt", content.encode())
        expected = path.read_text(encoding="utf-8-sig")  # Python's universal newlines
        assert "".join(read_blocks(path)) == expected
        assert measure(path) == (len(expected), hashlib.sha256(expected.encode()).hexdigest())


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "data, where, byte",
    [
        ("café".encode("latin-1"), 3, 0xE9),
        ("\ufeffab".encode() + b"\xff", 5, 0xFF),
        ("ab🙂".encode()[:-1], 2, 0xF0),  # cut short in its last character
        ("word".encode("utf-16"), 0, 0xFF),
        (b"ab\xed\xa0\x80", 2, 0xED),  # half a surrogate pair
    ],
)
def test_other_encodings_name_file_and_byte(tmp_path, monkeypatch, size, data, where, byte):
    monkeypatch.setattr(texts, "BLOCK", size)
    path = written(tmp_path / "bad.txt", data)
    with pytest.raises(UserError, match=rf"bad\.txt is not UTF-8 text: byte {where} is 0x{byte:02x}"):
        list(read_blocks(path))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused(tmp_path, encoding):
    """Its bytes are valid UTF-8, half of them NUL."""
    written(tmp_path / "a.txt", ("It was a dark and stormy night.\n" * 9).encode(encoding))
    with pytest.raises(UserError, match="a.txt .*UTF-16.*convert it to UTF-8"):
        load_corpus(str(tmp_path / "a.txt"))
    written(tmp_path / "b.txt", b"now and then a \0 stays as it is" * 9)
    assert load_corpus(str(tmp_path / "b.txt")).train.text()[15] == "\0"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_read(tmp_path):
    """Of a pipe, and of files such as /proc/kmsg, whose size is 0, a read may wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: not a regular file"):
        load_corpus(str(tmp_path / "pipe"))
    if os.path.exists("/proc/self/status"):
        with pytest.raises(UserError, match="/proc/self/status holds 0 characters"):
            load_corpus("/proc/self/status")


def test_a_span_is_a_slice(tmp_path, small_blocks):
    text = "abcdefgé三🙂xyz"
    path = written(tmp_path / "a.txt", text.encode())
    for start in range(len(text)):
        for stop in range(start, len(text) + 1):
            for source in (text, path):
                assert "".join(TextSpan(source, start, stop).blocks()) == text[start:stop]


# --- Corpora -----------------------------------------------------------------------------------------------------


def test_one_text_is_split_by_position(tmp_path, small_blocks):
    text = "0123456789é" * 10
    for source in (text, written(tmp_path / "a.txt", text.encode())):
        corpus = split_documents("a", [source])
        assert (corpus.train.text(), corpus.val.text()) == (text[:99], text[99:])
        assert (len(corpus.train), len(corpus.val)) == (99, 11)
        assert corpus.val.count_bytes() == len(text[99:].encode())
        assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert not corpus.train.separated


def folder_of_three(folder):
    folder.mkdir()
    written(folder / "b.txt", b"B" * 50)
    written(folder / "a.txt", b"A" * 45)
    written(folder / "c.txt", b"C" * 5)
    written(folder / "empty.txt", b"")
    written(folder / "notes.md", b"not part of it")
    return folder


def test_a_folder_is_its_texts_in_order(tmp_path, capsys):
    corpus = load_corpus(str(folder_of_three(tmp_path / "docs")))
    assert corpus.train.text() == "A" * 45 + "B" * 45
    assert corpus.val.text() == "B" * 5 + "C" * 5
    said = capsys.readouterr().err
    assert "4 documents, 100 characters" in said and "skipped: notes.md" in said
    tokenizer = CharTokenizer.from_blocks(corpus.train.blocks(), start="<bos>")
    bos, a, b, unknown = tokenizer.bos_id, 2, 3, tokenizer.unk_id
    assert encode_split(tokenizer, corpus.train, tmp_path).tolist() == [bos] + [a] * 45 + [bos] + [b] * 45
    with pytest.warns(UserWarning, match="5 of 10 characters"):
        ids = encode_split(tokenizer, corpus.val, tmp_path)
    assert ids.tolist() == [b] * 5 + [bos] + [unknown] * 5  # the rest of a document begins no document


def test_the_digest_tells_where_one_document_ends():
    one, other = split_documents("x", ["ab" * 9, "c" * 9]), split_documents("x", ["ab" * 9 + "c", "c" * 8])
    assert one.sha256 != other.sha256 and one.train.identity != other.train.identity


def test_folders_without_texts_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        load_corpus(str(tmp_path))
    written(tmp_path / "a.txt", b"")
    with pytest.raises(UserError, match="holds 0 characters"):
        load_corpus(str(tmp_path))


def test_a_folder_trains_and_samples_through_the_commands(in_process, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in "xyz":
        written(folder / f"{name}.txt", ("\ufeff" + f"I am {name}.\r\n" * 30).encode())
    assert in_process("main.py", *SMALL_NETWORK, "--data", "docs", "--steps", "2", "--out", "a.pth")[0] == 0
    code, out, _ = in_process("generate.py", "--checkpoint", "a.pth", "--max-new-tokens", "20", "--seed", "3")
    assert code == 0 and set(out) <= set("I am xyz.\n")


def test_a_corpus_smaller_than_a_window_is_an_error(in_process, tmp_path):
    written(tmp_path / "a.txt", b"0123456789" * 2)
    code, _, err = in_process("main.py", "--data", "a.txt", "--max-seq", "19", "--steps", "1")
    assert code == 2
    assert_one_error_line(err, "18 tokens", "window of 19", "--max-seq")


# --- Token files -------------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """Every split counts as large."""
    monkeypatch.setattr(texts, "IN_MEMORY", 0)


def test_a_large_split_is_encoded_once_into_a_mapped_file(tmp_path, large, small_blocks, monkeypatch):
    text = "0123456789" * 100
    corpus = split_documents("x", [text])
    tokenizer = CharTokenizer.from_text(text)
    cache = tmp_path / "tokens"
    ids = encode_split(tokenizer, corpus.train, cache)
    assert isinstance(ids, np.memmap) and ids.dtype == np.uint16
    assert ids.tolist() == tokenizer.encode(corpus.train.text())
    (file,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(texts, "token_blocks", None)  # a second start encodes nothing
        assert np.array_equal(encode_split(tokenizer, corpus.train, cache), ids)
    for changed in (split_documents("x", [text[:-1] + "X"]).train, corpus.val):
        encode_split(tokenizer, changed, cache)
    encode_split(CharTokenizer.from_text(text + "é"), corpus.train, cache)
    assert len(list(cache.iterdir())) == 4  # another text, another part, another tokenizer: another file


@pytest.mark.parametrize("damage", ["another file", "empty", "cut short"])
def test_a_token_file_that_is_not_whole_is_made_anew(tmp_path, large, damage):
    text = "0123456789" * 100
    corpus, tokenizer = split_documents("x", [text]), CharTokenizer.from_text(text)
    ids = encode_split(tokenizer, corpus.train, tmp_path).tolist()
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    file.write_bytes({"another file": b"x" * len(data), "empty": b"", "cut short": data[:-2]}[damage])
    assert encode_split(tokenizer, corpus.train, tmp_path).tolist() == ids
    assert file.read_bytes() == data


def test_more_than_65536_tokens_take_uint32(tmp_path, large):
    text = "".join(map(chr, range(32, 0x11000))).encode("utf-8", "ignore").decode()
    corpus = split_documents("x", [text])
    assert encode_split(CharTokenizer.from_text(text), corpus.train, tmp_path).dtype == np.uint32


def test_an_encoding_that_fails_leaves_nothing(tmp_path, large):
    corpus = split_documents("x", [written(tmp_path / "a.txt", b"a" * 100)])
    written(tmp_path / "a.txt", b"a" * 80 + b"\xff")
    with pytest.raises(UserError, match="byte 80"):
        encode_split(CharTokenizer.from_text("a"), corpus.train, tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []


def test_unknown_characters_in_a_large_split_are_counted(tmp_path, large, small_blocks):
    split = Split((TextSpan("abcabcabZ", 0, 9),), "x")
    with pytest.warns(UserWarning, match="3 of 9 characters"):
        encode_split(CharTokenizer.from_text("ab"), split, tmp_path)


def test_windows_of_a_file_equal_windows_in_memory(tmp_path):
    ids = np.random.default_rng(0).integers(50, size=1000).astype(np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    starts = np.array([0, 985, 500])
    for one, other in zip(
        ShiftedWindowDataset(ids, 14).batch(starts), ShiftedWindowDataset(mapped, 14).batch(starts), strict=True
    ):
        assert one.equal(other)


@pytest.mark.parametrize(
    "count, eval_tokens, starts",
    [(51, 20, [0, 10, 25, 35]), (52, 10, [0, 25]), (52, 3, [0]), (5, 3, [0]), (101, 50, list(range(0, 100, 10)))],
)
def test_evaluation_of_a_large_split_takes_windows_from_all_of_it(count, eval_tokens, starts):
    windows = list(consecutive_windows(np.arange(count), 5, batch_tokens=12, eval_tokens=eval_tokens))
    assert [start for x, _ in windows for start in x[:, 0].tolist()] == starts
    assert all(y.equal(x + 1) for x, y in windows)
    assert all(x.shape == (x.shape[0], min(5, count - 1)) and x.numel() <= 12 for x, _ in windows)


def test_more_eval_tokens_than_the_split_has_are_all_of_it():
    for eval_tokens in (None, 51, 1000):
        windows = list(consecutive_windows(np.arange(52), 5, 3, eval_tokens))
        assert [i for x, _ in windows for i in x.flatten().tolist()] == list(range(51))
        assert all(len(x) == 1 for x, _ in windows)  # at least one window, however few tokens a batch may have


@pytest.mark.parametrize("count", [2, 5, 6, 7, 50, 51, 52])
def test_consecutive_windows_go_once_through_everything(count, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(count, dtype=np.uint16))
    for ids in (np.arange(count), np.load(tmp_path / "ids.npy", mmap_mode="r")):
        windows = list(consecutive_windows(ids, max_seq=5, batch_tokens=15))
        assert [i for x, _ in windows for i in x.flatten().tolist()] == list(range(count - 1))
        assert [i for _, y in windows for i in y.flatten().tolist()] == list(range(1, count))
        assert all(x.shape[1] == 5 for x, _ in windows[:-1]) and all(x.shape[0] <= 3 for x, _ in windows)


MEMORY_SCRIPT = """
from pathlib import Path
import numpy as np
from corpora import texts
from data_setup import ShiftedWindowDataset, split_documents
from tokenizer import CharTokenizer

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

texts.IN_MEMORY = 0
before = memory('VmRSS')
corpus = split_documents("big", [Path("big.txt")])
tokenizer = CharTokenizer.from_blocks(corpus.train.blocks())
ids = texts.encode_split(tokenizer, corpus.train, Path("tokens"))
windows = ShiftedWindowDataset(ids, 64)
after = memory('VmRSS')
peak = memory('VmHWM')
for step in range(1500):
    windows.batch(np.random.default_rng(step).integers(len(windows), size=16))
print(peak - before, memory('VmRSS') - after)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_memory_stays_flat(command, tmp_path):
    """80 MB of text are encoded and read at random within a quarter of that."""
    written(tmp_path / "big.txt", b"It was a dark and stormy night. \n" * 2_400_000)
    written(tmp_path / "script.py", MEMORY_SCRIPT.encode())
    done = command(tmp_path / "script.py", env=environment(PYTHONPATH=str(ROOT)))
    encoding, training = map(int, re.findall(r"-?\d+", done.stdout))
    assert encoding < 40e6, f"encoding took {encoding / 1e6:.0f} MB"
    assert training < 10e6, f"reading windows took {training / 1e6:.0f} MB"
