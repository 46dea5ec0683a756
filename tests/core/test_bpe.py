"""Byte-level BPE: round trips, the tokenizers package as oracle, the training script, hostile files, a whole run."""

import io
import json
import math
import os
import random
import re
import signal
import sys
import threading
import time
import unicodedata

import pytest

from corpora import fast_bpe
from corpora.fast_bpe import FastBPETokenizer, for_length
from corpora.synthetic import synthetic_text
from corpora.texts import encode_split
from corpora.tokenizer_files import bpe_from_json, bpe_to_json, load_bpe, tokenizer_from_plain
from data_setup import load_corpus, split_documents
from helpers import SMALL_NETWORK, assert_one_error_line, read_metrics, text_of
from support.command import UserError, interruptible
from tokenizer import SYMBOLS, BPETokenizer, UnknownCharacterWarning, split_words

TEXT = synthetic_text(30_000)[0]
TOKENIZER = BPETokenizer.train([TEXT], 400)
ODD_TEXTS = [
    *("", " ", "<bos>", "a<bos>b"),
    "I'll don't we've 'tis 'S O'er l'été 's'''s rock'n'roll '\u017f",
    "naïve Übermut, 日本語 and 🙂! e\u0301 \u0301 x\u0308y 👩\u200d👩\u200d👧 ½ ² Ⅷ ٣4 a1b2 _x-y",
    "tabs\tand \x00\x01\x1c\x1f\x7f\x85\u2028\u3000\xa0 \u180e odd   spaces \n\n\n  x\r\n \r",
    "\ufeffa byte order mark  ",
    TEXT[:3000],
]


def random_texts(count: int) -> list[str]:
    """Strings of all characters that this Python knows, with much white space and many contractions."""
    assigned = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Cs")]
    kinds = (assigned, assigned[:600], [c for c in assigned if c.isspace()], list(" 'stremvld"), list(TEXT[:500]))
    chance = random.Random(2)
    return ["".join(chance.choice(chance.choice(kinds)) for _ in range(chance.randrange(50))) for _ in range(count)]


@pytest.fixture
def package():
    """The `tokenizers` package, the oracle."""
    return pytest.importorskip("tokenizers")


def test_a_vocabulary_is_the_packages(package):
    """Many of these merges are ties; runs of one character count overlapping pairs."""
    chance = random.Random(1)
    small = ["".join(chance.choices("aaab n\n", k=chance.randrange(60))) for _ in range(60)]
    for text in [TEXT, "".join(ODD_TEXTS), "aaaa aaa aaaaaaa", "ab cd cd ab", *small]:
        plain, fast = (kind.train([text[:50], text[50:]], 330) for kind in (BPETokenizer, FastBPETokenizer))
        assert plain.tokens == fast.tokens and plain.merges == fast.merges, text


def test_file_and_ids_are_the_packages(package):
    texts = [*ODD_TEXTS, *random_texts(1000)]
    plain = BPETokenizer.train([TEXT, *texts[:300]], 600)
    theirs = package.Tokenizer.from_str(bpe_to_json(plain))
    assert theirs.to_str(pretty=True) == bpe_to_json(plain)
    fast = FastBPETokenizer(plain.tokens, plain.merges)
    for text in texts:
        ids = plain.encode(text)
        assert ids == theirs.encode(text).ids == fast.encode(text), ascii(text)
        for end in range(min(len(ids), 10)):  # ends in the middle of a character included
            assert plain.decode(ids[:end]) == theirs.decode(ids[:end])


@pytest.mark.parametrize("run", ["acgt" * 500, "日" * 700, " " * 900, "ab" + "-" * 1000 + "\n\ncd", "x" * 140_000])
def test_words_are_cut_to_a_bounded_length(run, package):
    """A word of n bytes costs n² steps: a text without white space took minutes."""
    text = f"one {run} two\n{run}"
    assert max(map(len, split_words(text))) == 256 and "".join(split_words(text)) == text
    ids = TOKENIZER.encode(text)
    assert ids == FastBPETokenizer(TOKENIZER.tokens, TOKENIZER.merges).encode(text)
    if len(run) < 2**16:
        assert ids == package.Tokenizer.from_str(bpe_to_json(TOKENIZER)).encode(text).ids
    assert TOKENIZER.decode(ids) == text


def test_the_earliest_merge_comes_first_and_of_its_places_the_leftmost(package):
    """Merges in an order in which none could be learned, as another program's file may have."""
    merges = [("ab", "a"), ("b", "b"), ("a", "b"), ("b", "a"), ("ab", "ab"), ("aba", "b")]
    tokens = ["<bos>", *SYMBOLS, *("".join(merge) for merge in merges[:-2]), "abab"]
    plain, fast = BPETokenizer(tokens, merges), FastBPETokenizer(tokens, merges)
    chance = random.Random(3)
    for text in ["".join(chance.choices("ab", k=12)) for _ in range(300)]:
        assert plain.encode(text) == fast.encode(text), text


@pytest.mark.parametrize("size", [1, 7, 64, 2**17])
def test_a_text_in_blocks_has_the_ids_of_the_whole(size):
    text = "".join(ODD_TEXTS) + TEXT[:5000] * (20 if size > 100 else 1)
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    assert [i for ids in TOKENIZER.encode_blocks(blocks) for i in ids] == TOKENIZER.encode(text)
    assert TOKENIZER.encode(text) == [i for word in split_words(text) for i in TOKENIZER.encode_word(word)]


def test_a_large_text_is_read_by_the_package(package, monkeypatch, tmp_path):
    monkeypatch.setattr(fast_bpe, "MIN_CHARACTERS", 10_000)
    corpus = split_documents("my", [TEXT])
    assert [type(for_length(TOKENIZER, size)) for size in (9_999, 10_000)] == [BPETokenizer, FastBPETokenizer]
    for split in (corpus.train, corpus.val):
        assert encode_split(TOKENIZER, split, tmp_path).tolist() == TOKENIZER.encode(text_of(split))
    assert list(tmp_path.iterdir()) == []  # a small split leaves no file behind
    with monkeypatch.context() as patch:  # a student's rule for words
        patch.setattr(fast_bpe, "split_words", str.split)
        assert for_length(TOKENIZER, 10_000) is TOKENIZER
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # not installed
    assert for_length(TOKENIZER, 10_000) is TOKENIZER


def test_every_text_round_trips_and_no_text_holds_a_special_token():
    for text in [*ODD_TEXTS, *random_texts(200)]:
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert not set(ids) & set(TOKENIZER.special_ids)
    with pytest.warns(UnknownCharacterWarning, match="U\\+D800.* at 1"):
        assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a\ufffdb"


def test_it_travels_as_plain_data_and_as_a_file():
    copies = [tokenizer_from_plain(json.loads(json.dumps(TOKENIZER.to_plain()))), bpe_from_json(bpe_to_json(TOKENIZER))]
    old = {"vocab": VOCABULARY, "merges": [" ".join(merge) for merge in TOKENIZER.merges]}  # as older files have them
    for copy in [*copies, bpe_from_json(json.dumps({"model": old}))]:
        assert copy.encode(TEXT) == TOKENIZER.encode(TEXT)
        assert copy.to_plain() == TOKENIZER.to_plain() and copy.vocab_size == 400


def test_where_a_text_starts_and_ends():
    assert TOKENIZER.start_id == TOKENIZER.bos_id and TOKENIZER.decode([TOKENIZER.bos_id]) == ""
    assert TOKENIZER.decode([bpe_from_json(bpe_to_json(TOKENIZER), start="\n").start_id]) == "\n"
    gpt2 = BPETokenizer([*TOKENIZER.tokens[1:], "<|endoftext|>"], TOKENIZER.merges)
    assert TOKENIZER.eos_id == TOKENIZER.bos_id and gpt2.eos_id == gpt2.bos_id == 399 and gpt2.decode([399]) == ""
    for ids in ([400], [-1], [0.5]):
        with pytest.raises(ValueError):
            TOKENIZER.decode(ids)


VOCABULARY = {token: number for number, token in enumerate(TOKENIZER.tokens)}
DAMAGED_FILES = ["", "{", "[]", "null", "{}", '{"model": {}}', "[" * 100_000, "[" + "[]," * 2**20 + "[]]"]
DAMAGED_VOCABULARIES = [
    [],
    {token: number + 1 for token, number in VOCABULARY.items()},
    *({token: kind(number) for token, number in VOCABULARY.items()} for kind in (str, float)),
]
DAMAGED_PLAIN = [
    *({"tokens": tokens} for tokens in ([], TOKENIZER.tokens[1:], TOKENIZER.tokens[:200])),  # no <bos>, not all bytes
    *({"tokens": [*TOKENIZER.tokens, token]} for token in ("日", "a", ["a"])),  # not of bytes, twice, not a text
    *({"merges": merges} for merges in (5, [5], [["q"]], [["q", "nowhere"]], [["q", "q"]], [["a", ["b"]]])),
    {"start": "a"},
]


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "t.json"
    models = [{"model": {"vocab": vocabulary, "merges": []}} for vocabulary in DAMAGED_VOCABULARIES]
    for content in [b"\xff\xfe", *map(str.encode, [*DAMAGED_FILES, *map(json.dumps, models)])]:
        path.write_bytes(content)
        with pytest.raises(UserError, match="t.json"):
            load_bpe(path)
    for name in ("none.json", "."):
        with pytest.raises(UserError, match="no such file"):
            load_bpe(tmp_path / name)


@pytest.mark.parametrize("damage", DAMAGED_PLAIN)
def test_damaged_descriptions_are_refused(damage):
    with pytest.raises(ValueError):
        tokenizer_from_plain(TOKENIZER.to_plain() | damage)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_what_a_library_does():
    """A program that a shell started in the background begins with SIGINT ignored, as the gate may be."""
    earlier, finished = signal.signal(signal.SIGINT, signal.default_int_handler), threading.Event()
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            interruptible(lambda: (time.sleep(60), finished.set()))
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert not finished.is_set()
    with pytest.raises(ZeroDivisionError):  # what the work raises comes through
        interruptible(lambda: 1 / 0)


def test_train_show_and_a_whole_run_without_the_package(output_of, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_bpe, "MIN_CHARACTERS", 0)
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # not installed
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    assert "300 tokens" in output_of("train_tokenizer.py", "--data", "my.txt", "--vocab-size", 300, "--out", "t.json")
    tokenizer = load_bpe(tmp_path / "t.json")
    assert tokenizer.to_plain() == BPETokenizer.train([TEXT[:27_000]], 300).to_plain()  # of the training part only
    words = load_corpus(str(tmp_path / "my.txt"), documents="= ").train.spans  # no token is of two of them
    output_of("train_tokenizer.py", "--data", "my.txt", "--documents", "= ", "--vocab-size", 300, "--out", "d.json")
    assert load_bpe(tmp_path / "d.json").to_plain() == BPETokenizer.train(map(text_of, words), 300).to_plain()

    shown = re.findall(r"(\S+)\((\d+)\)", output_of("train_tokenizer.py", "--tokenizer", "t.json", "--show", "the é"))
    assert [int(token_id) for _, token_id in shown] == tokenizer.encode("the é")
    assert "".join(piece for piece, _ in shown) == r"the␣\xc3\xa9"
    merges = output_of("train_tokenizer.py", "--tokenizer", "t.json", "--merges", 2).replace("␣", "Ġ").splitlines()
    (a, b), (c, d) = tokenizer.merges[:2]
    assert merges == [f"{a} + {b} = {a + b}(257)", f"{c} + {d} = {c + d}(258)"]

    flags = [*SMALL_NETWORK, "--data", "my.txt", "--eval-every", "2", "--out", "a.pth"]
    out = output_of("main.py", *flags, "--tokenizer", "t.json", "--steps", "4", "--stop-at", "2")
    assert "nats per character" in out and "bits per byte" in out
    (tmp_path / "t.json").unlink()  # the tokenizer travels inside the checkpoint
    output_of("main.py", "--resume", "--out", "a.pth")
    line = read_metrics(tmp_path / "a.metrics.jsonl")[-1]
    first, *targets = tokenizer.encode(TEXT[27_000:])  # the first token has no loss
    characters = 3000 - len(tokenizer.decode([first]))
    assert line["val_nats_per_character"] == pytest.approx(line["val_loss"] * len(targets) / characters)
    assert line["val_bits_per_byte"] == pytest.approx(line["val_nats_per_character"] / math.log(2))  # all of it ASCII
    text = output_of("generate.py", "--checkpoint", "a.pth", "--prompt", "KING é", "--max-new-tokens", 5)
    assert text.startswith("KING é")


def test_one_line_errors(output_of, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "gpt2.json").write_text(json.dumps(json.loads(bpe_to_json(TOKENIZER))), encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for arguments, words in (
        (["train_tokenizer.py", "--data", "my.txt", "--vocab-size", 256], ("--vocab-size", "257")),
        (["train_tokenizer.py", "--data", "my.txt", "--out", "folder"], ("folder", "not a regular file")),
        (["train_tokenizer.py", "--data", "my.txt", "--out", "my.txt"], ("my.txt", "--force")),
        (["train_tokenizer.py", "--data", "my.txt", "--out", "gpt2.json"], ("gpt2.json", "--force")),
        (["train_tokenizer.py", "--show", "x", "--data", "y"], ("--data", "does nothing")),
        (["train_tokenizer.py", "--merges", 3, "--vocab-size", 300], ("--vocab-size", "does nothing")),
        (["train_tokenizer.py", "--tokenizer", "x"], ("--tokenizer", "does nothing")),
    ):
        assert_one_error_line(output_of(*arguments, code=2), *words)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["gpt2.json", "my.txt"]
    assert (tmp_path / "my.txt").read_text(encoding="utf-8") == TEXT


def test_no_other_file_is_overwritten(output_of, tmp_path):
    """`--out my.txt` once replaced the corpus that it had learned from; --force and an earlier output are fine."""
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    flags = ["train_tokenizer.py", "--data", "my.txt", "--vocab-size"]
    for size, *out in ((260, "t.json"), (270, "t.json"), (280, "my.txt", "--force")):
        output_of(*flags, size, "--out", *out)
        assert load_bpe(tmp_path / out[0]).vocab_size == size


def test_a_vocabulary_cannot_steer_the_terminal(output_of, tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text(bpe_to_json(TOKENIZER), encoding="utf-8")
    show = ["train_tokenizer.py", "--tokenizer", "t.json", "--show", "a\x1b]52;c;eA==\x07b\tc\x9b"]
    assert "\x1b" in output_of(*show)  # in a pipe it stays
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    output_of(*show)
    shown = terminal.getvalue()
    assert r"\x1b" in shown and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
