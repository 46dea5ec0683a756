"""Corpora of every shape: folders, encodings, documents, and texts too large for memory."""

import codecs
import gzip
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import environment
from corpora import texts
from corpora.texts import Split, TextSpan, encode_split, measure, read_blocks
from data_setup import load_corpus, split_documents
from helpers import ROOT, posix, text_of, written
from support.command import UserError
from tokenizer import CharTokenizer

MIXED = "One, tŵo, 三, 🙂.\r\nnext\rlast\n"


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few bytes, so that every seam is met: within a character, within CRLF, within the mark."""
    monkeypatch.setattr(texts, "BLOCK", 3)


# --- Reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_any_block_size_reads_what_python_reads(tmp_path, monkeypatch, size):
    monkeypatch.setattr(texts, "BLOCK", size)
    for content in (MIXED, "\ufeff" + MIXED, "\ufeff", "", "\r", "a\r\n", "\r\r\n\n", "x\ufeff"):
        path = written(tmp_path / "a.txt", content)
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
        (b"ab\xed\xa0\x80", 2, 0xED),  # half a surrogate pair
    ],
)
def test_other_encodings_name_file_and_byte(tmp_path, monkeypatch, size, data, where, byte):
    monkeypatch.setattr(texts, "BLOCK", size)
    with pytest.raises(UserError, match=rf"bad\.txt is not UTF-8 text: byte {where} is 0x{byte:02x}"):
        list(read_blocks(written(tmp_path / "bad.txt", data)))


MARKS = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-le": codecs.BOM_UTF32_LE}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_utf_16_with_its_mark_is_read(tmp_path, monkeypatch, encoding, size):
    monkeypatch.setattr(texts, "BLOCK", size)
    path = written(tmp_path / "a.txt", MARKS[encoding] + "Müller, 王\r\n🙂".encode(encoding))
    assert "".join(read_blocks(path)) == "Müller, 王\n🙂"


@posix
@pytest.mark.parametrize(
    "head, command",
    [
        (gzip.compress(b"text"), "gunzip -c 'my text' > 'my text.utf8.txt'"),
        (b"PK\3\4", "make one: unzip 'my text'"),
        (b"%PDF-1.7\n", "pdftotext 'my text' 'my text.utf8.txt'"),
        ("naïve".encode("latin-1"), "if it is Latin-1: iconv -f latin1 -t utf-8 'my text' > 'my text.utf8.txt'"),
        (codecs.BOM_UTF16_LE + b"a\0b", "is not UTF-16-LE text: byte"),
    ],
)
def test_what_is_no_text_yet_gets_the_command_that_makes_it_one(head, command):
    written(Path("my text"), head)
    with pytest.raises(UserError, match=re.escape(command)):
        load_corpus("my text")
    written(Path("My.DOCX"), b"PK\3\4")
    with pytest.raises(UserError, match="make one: pandoc -t plain -o My.utf8.txt My.DOCX"):
        load_corpus("My.DOCX")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused(tmp_path, encoding):
    """Its bytes are valid UTF-8, half of them NUL."""
    path = written(tmp_path / "a.txt", ("It was a dark and stormy night.\n" * 9).encode(encoding))
    with pytest.raises(UserError, match=f"a.txt .*UTF-16.*iconv -f {encoding[:6]}{encoding[7:]} "):
        load_corpus(str(path))
    path = written(tmp_path / "b.txt", "now and then a \0 stays as it is" * 9)
    assert text_of(load_corpus(str(path)).train)[15] == "\0"


def test_a_span_is_a_slice(tmp_path, small_blocks):
    text = "abcdefgé三🙂xyz"
    for source in (text, written(tmp_path / "a.txt", text)):
        for start in range(len(text)):
            for stop in range(start, len(text) + 1):
                assert text_of(TextSpan(source, start, stop)) == text[start:stop]


def test_one_text_is_split_by_position_if_there_is_enough(tmp_path, small_blocks):
    text = "0123456789é" * 10
    for source in (text, written(tmp_path / "a.txt", text)):
        corpus = split_documents("a", [source])
        assert (text_of(corpus.train), text_of(corpus.val)) == (text[:99], text[99:])
        assert (len(corpus.train), len(corpus.val)) == (99, 11)
        assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert not corpus.train.separated and corpus.floor is None
    with pytest.raises(UserError, match="a holds 2 characters"):
        split_documents("a", ["ab"])


def test_a_folder_is_its_texts_shuffled_with_its_subfolders(tmp_path, capsys):
    texts = {"b.txt": "B" * 50, "a.txt": "A" * 45, "deep/c.txt": "C" * 5, "empty.txt": "", "n.md": "no", ".h.txt": "no"}
    (tmp_path / "deep").mkdir()
    for name, text in texts.items():
        written(tmp_path / name, text)
    corpus = load_corpus(str(tmp_path))
    assert (text_of(corpus.train), text_of(corpus.val)) == ("C" * 5 + "A" * 45 + "B" * 40, "B" * 10)
    said = capsys.readouterr().err
    assert "files: 4; skipped: n.md\n" in said and "skipped: .h.txt" not in said
    tokenizer = CharTokenizer.from_blocks(corpus.train.blocks(), start="<bos>")
    bos, a, b, c = tokenizer.bos_id, 2, 3, 4
    assert encode_split(tokenizer, corpus.train, tmp_path).tolist() == [bos, *[c] * 5, bos, *[a] * 45, bos, *[b] * 40]
    assert encode_split(tokenizer, corpus.val, tmp_path).tolist() == [b] * 10  # the rest of a document begins none


def test_the_digest_tells_where_one_document_ends():
    one, other = split_documents("x", ["ab" * 9, "c" * 9]), split_documents("x", ["ab" * 9 + "c", "c" * 8])
    assert one.sha256 != other.sha256 and one.train.identity != other.train.identity


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file matches --glob"):
        load_corpus(str(tmp_path))
    written(tmp_path / "a.txt", "")
    with pytest.raises(UserError, match="holds 0 characters"):
        load_corpus(str(tmp_path))


# --- Token files -------------------------------------------------------------------------------------------------

DIGITS = "0123456789" * 100


@pytest.fixture
def large(monkeypatch):
    """Every split counts as large."""
    monkeypatch.setattr(texts, "IN_MEMORY", 0)


def test_a_large_split_is_encoded_once_into_a_mapped_file(tmp_path, large, small_blocks, monkeypatch):
    corpus, tokenizer = split_documents("x", [DIGITS]), CharTokenizer.from_text(DIGITS)
    ids = encode_split(tokenizer, corpus.train, tmp_path)
    assert isinstance(ids, np.memmap) and ids.dtype == np.uint16
    assert ids.tolist() == tokenizer.encode(text_of(corpus.train))
    with monkeypatch.context() as patch:
        patch.setattr(texts, "token_blocks", None)  # a second start encodes nothing
        assert np.array_equal(encode_split(tokenizer, corpus.train, tmp_path), ids)
    encode_split(tokenizer, split_documents("x", [DIGITS[:-1] + "X"]).train, tmp_path)
    encode_split(tokenizer, corpus.val, tmp_path)
    encode_split(CharTokenizer.from_text(DIGITS + "é"), corpus.train, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # another text, another part, another tokenizer: another file


@pytest.mark.parametrize("damage", ["another file", "empty", "cut short", "cut out", "impossible ids"])
def test_a_token_file_that_is_not_whole_is_made_anew(tmp_path, large, damage):
    corpus, tokenizer = split_documents("x", [DIGITS]), CharTokenizer.from_text(DIGITS)
    ids = encode_split(tokenizer, corpus.train, tmp_path).tolist()
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    damaged = {"another file": b"x" * len(data), "empty": b"", "cut short": data[:-2]}
    damaged |= {"cut out": data[:100] + data[200:], "impossible ids": b"\xff\xff" + data[2:]}
    file.write_bytes(damaged[damage])
    assert encode_split(tokenizer, corpus.train, tmp_path).tolist() == ids
    assert file.read_bytes() == data


def test_more_than_65536_tokens_take_uint32(tmp_path, large):
    text = "".join(map(chr, range(32, 0x11000))).encode("utf-8", "ignore").decode()
    corpus = split_documents("x", [text])
    assert encode_split(CharTokenizer.from_text(text), corpus.train, tmp_path).dtype == np.uint32


def test_unknown_characters_in_a_large_split_are_counted(tmp_path, large, small_blocks):
    split = Split((TextSpan("abcabcabZ", 0, 9),), "x", 9)
    with pytest.warns(UserWarning, match="3 of 9 characters"):
        encode_split(CharTokenizer.from_text("ab"), split, tmp_path)


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
windows = ShiftedWindowDataset(texts.encode_split(tokenizer, corpus.train, Path("tokens")), 64)
windows.batch(np.zeros(16, int) + np.random.default_rng(0).integers(9))  # imports what the first batch needs
after = memory('VmRSS')
peak = memory('VmHWM')
for step in range(1500):
    windows.batch(np.random.default_rng(step).integers(len(windows), size=16))
print(peak - before, memory('VmRSS') - after)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_memory_stays_flat(command, tmp_path):
    """80 MB of text are encoded and read at random within a quarter of that."""
    written(tmp_path / "big.txt", "It was a dark and stormy night. \n" * 2_400_000)
    script = written(tmp_path / "script.py", MEMORY_SCRIPT)
    done = command(script, env=environment(PYTHONPATH=str(ROOT)))
    encoding, training = map(int, re.findall(r"-?\d+", done.stdout))
    assert encoding < 40e6, f"encoding took {encoding / 1e6:.0f} MB"
    assert training < 10e6, f"reading windows took {training / 1e6:.0f} MB"
