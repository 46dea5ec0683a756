"""Which corpus a name stands for, the windows and batches that training reads, the grammar's entropy floor."""

import hashlib
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

import data_setup
from corpora.download import Download
from corpora.synthetic import SENTENCES, SPEAKERS, WORDS, Choice, synthetic_text
from data_setup import ShiftedWindowDataset, batch_starts, consecutive_windows, load_corpus
from helpers import ROOT, text_of, written
from support.command import UserError


def source(text: bytes) -> Download:
    """Where nothing answers; with the right text in the folder, nothing is asked."""
    return Download("http://127.0.0.1:9/x", "text.txt", len(text), hashlib.sha256(text).hexdigest())


def test_auto_takes_the_file_that_is_there_and_else_falls_back_with_a_note(tmp_path, capsys, monkeypatch):
    text = b"Speak, I charge thee, speak!\n" * 40
    monkeypatch.setattr(data_setup, "TINYSHAKESPEARE", source(text))
    assert load_corpus("auto", tmp_path).name == "synthetic"
    assert "SYNTHETIC" in capsys.readouterr().err
    written(tmp_path / "text.txt", text)
    corpus = load_corpus("auto", tmp_path)
    whole = text_of(corpus.train) + text_of(corpus.val)
    assert whole == text.decode() and not capsys.readouterr().err
    written(tmp_path / "text.txt", text[:-1])
    with pytest.raises(OSError, match="text.txt"):  # a damaged copy is no reason to train on something else
        load_corpus("auto", tmp_path)


def test_an_explicit_name_never_falls_back(tmp_path, monkeypatch):
    monkeypatch.setattr(data_setup, "TINYSHAKESPEARE", source(b"x"))
    with pytest.raises(UserError, match="no such file"):
        load_corpus("tiny_shakespeare", tmp_path)
    with pytest.raises(OSError):
        load_corpus("tinyshakespeare", tmp_path)


@pytest.mark.tinyshakespeare
@pytest.mark.skipif(not (ROOT / "data/tinyshakespeare.txt").exists(), reason="needs data/tinyshakespeare.txt")
def test_the_real_tinyshakespeare():
    corpus = load_corpus("tinyshakespeare", ROOT / "data")
    assert (len(corpus.train), len(corpus.val)) == (1_003_854, 111_540)
    assert corpus.sha256 == data_setup.TINYSHAKESPEARE.sha256
    assert text_of(corpus.train).startswith("First Citizen:")


# --- Windows -----------------------------------------------------------------------------------------------------


def test_targets_are_the_inputs_shifted_by_one():
    windows = ShiftedWindowDataset(np.arange(10, dtype=np.uint16), max_seq=4)
    assert len(windows) == 6
    for i in range(6):
        inputs, targets = windows[i]
        assert inputs.tolist() == list(range(i, i + 4)) and targets.tolist() == list(range(i + 1, i + 5))
        assert inputs.dtype == targets.dtype == torch.int64
    with pytest.raises(IndexError):
        windows[6]
    inputs, targets = next(iter(torch.utils.data.DataLoader(windows, batch_size=5)))
    assert inputs.shape == (5, 4) and torch.equal(inputs + 1, targets)


def test_batches_of_a_file_and_of_memory_are_the_single_windows(tmp_path):
    ids = np.random.default_rng(0).integers(50, size=1000).astype(np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    starts = np.array([0, 985, 13, 13])
    for tokens in (ids, np.load(tmp_path / "ids.npy", mmap_mode="r")):
        inputs, targets = ShiftedWindowDataset(tokens, 14).batch(starts)
        for row, start in enumerate(starts):
            assert inputs[row].tolist() == ids[start : start + 14].tolist()
            assert targets[row].tolist() == ids[start + 1 : start + 15].tolist()


@pytest.mark.parametrize("order", ["epochs", "random"])
def test_batches_are_a_pure_function_of_seed_step_and_rank(order):
    windows = ShiftedWindowDataset(np.arange(1000), 8)
    whole = batch_starts(windows, 8, seed=3, step=5, windows=order)
    assert np.array_equal(whole, batch_starts(windows, 8, seed=3, step=5, windows=order))
    assert not np.array_equal(whole, batch_starts(windows, 8, seed=3, step=6, windows=order))
    assert not np.array_equal(whole, batch_starts(windows, 8, seed=4, step=5, windows=order))
    shares = [batch_starts(windows, 8, seed=3, step=5, rank=rank, ranks=4, windows=order) for rank in range(4)]
    assert np.array_equal(np.concatenate(shares), whole)


def test_random_windows_begin_anywhere():
    windows = ShiftedWindowDataset(np.arange(20), 8)
    starts = [batch_starts(windows, 4, seed=0, step=step, windows="random") for step in range(100)]
    assert set(np.concatenate(starts)) == set(range(len(windows)))


@pytest.mark.parametrize("tokens", [65, 66, 90, 127, 128, 129, 190, 300, 513, 640])
def test_epochs_read_every_token_equally_often(tokens):
    """The first character of 513 was read 0.003 times an epoch, with a window of 256."""
    windows = ShiftedWindowDataset(np.arange(tokens), 64)
    per_epoch = tokens // 64
    starts = batch_starts(windows, 200 * per_epoch, seed=1, step=0)  # 200 epochs
    inputs, targets = windows.batch(starts)
    first = inputs[:per_epoch].flatten().tolist()
    assert len(set(first)) == len(first)  # side by side
    for counts in (np.bincount(inputs.flatten(), minlength=tokens), np.bincount(targets.flatten(), minlength=tokens)):
        assert 0.9 * counts.mean() < counts.min() <= counts.max() < 1.1 * counts.mean()
    pieces = [batch_starts(windows, 3, seed=1, step=step) for step in range(10)]  # across the seams of epochs
    assert np.array_equal(np.concatenate(pieces), starts[:30])


@pytest.mark.parametrize("count", [2, 5, 6, 7, 50, 51, 52])
@pytest.mark.parametrize("eval_tokens", [None, 51, 1000])
def test_an_evaluation_goes_once_through_everything(count, eval_tokens):
    windows = list(consecutive_windows(np.arange(count), 5, batch_tokens=15, eval_tokens=eval_tokens))
    assert [i for x, _ in windows for i in x.flatten().tolist()] == list(range(count - 1))
    assert [i for _, y in windows for i in y.flatten().tolist()] == list(range(1, count))
    assert all(x.shape[1] == 5 for x, _ in windows[:-1]) and all(x.shape[0] <= 3 for x, _ in windows)


@pytest.mark.parametrize(
    "count, eval_tokens, starts",
    [(51, 20, [0, 10, 25, 35]), (52, 10, [0, 25]), (52, 3, [0]), (5, 3, [0]), (101, 50, list(range(0, 100, 10)))],
)
def test_an_evaluation_of_a_part_takes_windows_from_all_of_it(count, eval_tokens, starts):
    windows = list(consecutive_windows(np.arange(count), 5, batch_tokens=12, eval_tokens=eval_tokens))
    assert [start for x, _ in windows for start in x[:, 0].tolist()] == starts
    assert all(y.equal(x + 1) for x, y in windows)
    assert all(x.shape == (x.shape[0], min(5, count - 1)) and x.numel() <= 12 for x, _ in windows)


# --- The grammar -------------------------------------------------------------------------------------------------


def test_a_choice_scores_each_character_exactly():
    half = pytest.approx(math.log(2))
    assert Choice(["cat ", "car ", "dog "], [1, 1, 2]).nats == [[half, 0, half, 0], [half, 0, half, 0], [half, 0, 0, 0]]
    with pytest.raises(ValueError, match="ambiguous"):
        Choice(["king", "kingdom"], [1, 1])


def test_the_corpus_is_seeded_and_its_floor_is_that_of_its_validation_targets():
    text, nats = synthetic_text(50_000)
    assert text[:500] == synthetic_text(500)[0] != synthetic_text(500, seed=1)[0]
    corpus = data_setup.synthetic_corpus(50_000)
    assert text_of(corpus.train) + text_of(corpus.val) == text
    assert corpus.floor == pytest.approx(nats[45_001:].sum() / 4_999)


def test_the_floor_is_the_entropy_of_counted_choices():
    """Read back by a parser that shares no code with the generator and knows no weights: it counts who chose what."""
    text, nats = synthetic_text(400_000, seed=9)
    counts, position, previous = defaultdict(Counter), 0, None

    def read(*options: str) -> int:
        nonlocal position
        (index,) = [i for i, option in enumerate(options) if text.startswith(option, position)]
        position += len(options[index])
        counts[options][index] += 1
        return index

    openings = [template.split("{")[0] for _, template in SENTENCES]
    while position < len(text) - 10_000:
        others = [name for name in SPEAKERS if name != previous]
        previous = others[read(*[name + ":\n" for name in others])]
        sentence = read(*openings)
        while sentence < len(SENTENCES):
            for slot in SENTENCES[sentence][1].split("{")[1:]:
                kind, literal = slot.split("}")
                read(*[word + literal for word in WORDS[kind]])
            sentence = read(*openings, "\n")  # an empty line ends the speech
    entropy = -sum(n * math.log(n / count.total()) for count in counts.values() for n in count.values())
    # Counted shares fit the text better than the true ones, by half a nat per free one (Wilks 1938), and never worse.
    free = sum(len(options) - 1 for options in counts)
    assert 0 < nats[:position].sum() - entropy < 0.75 * free and nats.min() >= 0
