"""Files of many documents: where one ends, in which order they come, how they are split, encoded and sampled."""

from pathlib import Path

import numpy as np
import pytest

from corpora.documents import documents_in, separator
from corpora.texts import encode_split, odd_tenth, read_blocks
from corpora.tokenizer_files import bpe_from_json, bpe_to_json
from data_setup import load_corpus
from helpers import assert_one_error_line, new_run, text_of, written
from main import make_tokenizer
from support.command import UserError
from tokenizer import BOS, BPETokenizer, CharTokenizer
from training.report import MAX_DIFFERENCE, announce
from training.story import sample_ids

QUOTES = "one\ntwo\n%\nthree %\n\n%\n\nfour\n%\n"


@pytest.mark.parametrize(
    ("documents", "text", "expected"),
    [
        ("lines", "emma\nava\n\nmia\n", ["emma", "ava", "mia"]),
        ("lines", "\ufeffemma\r\nava\r\n\r\nmia é\r\n", ["emma", "ava", "mia é"]),
        ("blank", "a\nb\n\nc\n \t\n\nd\n", ["a\nb", "c", "d"]),
        ("blank", "a\r\nb\r\n\r\nc d e", ["a\nb", "c d e"]),
        ("=%", QUOTES, ["one\ntwo", "three %", "four"]),
        ("=%", "a%b%%cde", ["a", "b", "cde"]),  # no line consists of it
        ("=<|endoftext|>", "One.<|endoftext|>Two.\n<|endoftext|>Three.", ["One.", "Two.", "Three."]),
        ("= ", "to be or not", ["to", "be", "or", "not"]),
    ],
)
def test_where_documents_end(tmp_path, documents, text, expected):
    content = bytearray("x\n" + "".join(read_blocks(written(tmp_path / "a.txt", text))), "utf-8")
    found = list(documents_in(content, 2, len(content), separator(content, documents, "a.txt")))
    assert [document.decode() for _, document in found] == expected
    assert all(content[start:].startswith(document) for start, document in found)


@pytest.mark.parametrize(
    ("documents", "text", "message"),
    [
        ("line", "a\nb", 'must be lines, blank, or "=STRING"'),
        ("=", "a\nb", 'must be lines, blank, or "=STRING"'),
        ("=%", "a\nb", "a.txt does not hold %: correct it or leave it out"),
        ("=\udca7", "ça\nb", "must be lines, blank"),  # no UTF-8: what a terminal in Latin-1 makes of a paragraph sign
        ("lines", "emma\n".encode("utf-16-le"), "full of NUL characters"),
        ("lines", "Größe\n".encode("utf-16-le"), "if it is UTF-16: iconv -f utf-16le"),
        ("blank", "a\nb", "a single document"),
        ("lines", "\n\n", "0 characters .*: give more text"),
        ("lines", b"emma\n\xe9va\nmia", "is not UTF-8 text: byte 5 is 0xe9; if it is Latin-1"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path, documents, text, message):
    with pytest.raises(UserError, match=message):
        load_corpus(str(written(tmp_path / "a.txt", text)), documents=documents)


def test_what_ends_a_document_is_decided_for_all_files_and_each_file_counts_once(tmp_path):
    """One quotation without a line of % refused the rest, and its 50% would have cut it. UTF-16 is read too."""
    files = written(tmp_path / "a.txt", "50% of it"), written(tmp_path / "b.txt", "1\n%\n2\n%\n3".encode("utf-16"))
    corpus = load_corpus([str(tmp_path), *map(str, files)], documents="=%")
    assert sorted(text_of(corpus.train) + text_of(corpus.val)) == sorted("50% of it123")


def test_names_are_shuffled_alike_whatever_the_run_and_both_parts_are_alike(tmp_path, capsys):
    """Sorted, the last tenth is unlike the rest, and a note says so; shuffled, it is not."""
    generator = np.random.default_rng(1)
    names = sorted("".join(chr(97 + letter) for letter in generator.integers(26, size=6)) for _ in range(3000))
    path = written(tmp_path / "names.txt", "\n".join(names))
    corpus, again = (load_corpus(str(path), documents="lines") for _ in range(2))
    assert text_of(corpus.train) == text_of(again.train) and corpus.sha256 == again.sha256
    assert capsys.readouterr().err == f"{path}: documents: 3,000\n" * 2
    assert corpus.sha256 != load_corpus(str(path), documents="=a").sha256
    assert "documents: " in (said := capsys.readouterr().err) and said.endswith(" (each ends wherever it holds a)\n")
    assert sorted(text_of(corpus.train) + text_of(corpus.val)) == sorted("".join(names))
    assert (len(corpus.train), len(corpus.val)) == (16_200, 1_800)

    def distance(corpus) -> float:
        tokenizer = CharTokenizer.from_blocks(corpus.train.blocks())
        last, other = odd_tenth(*(encode_split(tokenizer, part, tmp_path) for part in (corpus.train, corpus.val)))
        return abs(last - other)

    assert distance(corpus) < 0.1 and MAX_DIFFERENCE < distance(load_corpus(str(path)))
    assert new_run("--data", written(tmp_path / "e.txt", "é" * 3000), "--steps", 1).val_bytes == 600
    halves = [written(tmp_path / f"{i}.txt", "\n".join(names[1500 * i :][:1500])) for i in (0, 1)]
    for data in ([path], halves):  # below 20,000 tokens, and of several files, nothing was said
        announce(new_run("--data", *data, "--steps", 1), set())
        assert "the last tenth of the text, which validates, is unlike the rest" in capsys.readouterr().err


def test_every_document_begins_with_bos_for_both_tokenizers(tmp_path):
    paths = [written(tmp_path / f"{i}.txt", f"cat {i}\ncat mat\ncat") for i in range(3)]
    corpus = load_corpus(list(map(str, paths)), documents="lines")
    trained = BPETokenizer.train(["cat mat " * 9], 262)
    for tokenizer in (make_tokenizer("char", corpus), bpe_from_json(bpe_to_json(trained), BOS)):
        ids = encode_split(tokenizer, corpus.train, tmp_path)
        expected = [[tokenizer.bos_id, *tokenizer.encode(s.source[: s.stop])] for s in corpus.train.spans]
        assert ids.tolist() == sum(expected, [])
        assert tokenizer.eos_id == tokenizer.bos_id == tokenizer.start_id  # where the next one begins, a text ends


def test_train_and_sample_documents(output_of):
    """`<bos>` begins a text and ends it, the settings are saved, and another way to cut the text is another run."""
    written(Path("names.txt"), "anna\nbob\n" * 100)
    flags = ["--data", "names.txt", "--documents", "lines", "--preset", "tiny", "--max-seq", "16", "--out", "a.pth"]
    output_of("main.py", *flags, "--steps", "60", "--stop-at", "50")
    resume, sample = ("main.py", "--resume", "--out", "a.pth"), ("generate.py", "--checkpoint", "a.pth", "--seed", 1)
    output_of(*resume)
    texts = output_of(*sample, "--num-samples", 4).split("\n")
    assert {text for text in texts if text and "---" not in text} == {"anna", "bob"}
    assert len(output_of(*sample, "--ignore-eos", "--max-new-tokens", 40).strip()) == 40
    assert ["documents", "lines"] in [line.split() for line in output_of("convert.py", "a.pth").splitlines()]
    assert_one_error_line(output_of(*resume, "--documents", "blank", code=2), "--documents blank")
    assert_one_error_line(output_of("main.py", "--documents", "lines", code=2), "give --data a path")


def test_the_sample_of_a_story_is_read_as_it_was_written(recwarn):
    """Names hold no line end: where a document ended, each evaluation warned of an unknown character."""
    assert sample_ids(CharTokenizer("abn", BOS), "an\nb").tolist() == [1, 2, 4, 1, 3]
    assert sample_ids(CharTokenizer("\nab", "\n"), "a\nb").tolist() == [2, 3, 2, 4]
    assert not recwarn.list
