"""Corpora, the verified download, the grammar's entropy floor, and windows."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
import torch

import data_setup
from corpora import synthetic
from corpora.download import Download
from corpora.synthetic import Choice, synthetic_text
from corpora.texts import read_blocks
from data_setup import ShiftedWindowDataset, add_token_noise, batch_starts, load_corpus
from helpers import ROOT
from support.command import UserError

TEXT = b"Speak, I charge thee, speak!\n" * 40


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


def test_the_batched_path_equals_single_items():
    windows = ShiftedWindowDataset(np.random.default_rng(0).integers(50, size=100), max_seq=7)
    starts = np.array([0, 92, 13, 13])
    inputs, targets = windows.batch(starts)
    for row, start in enumerate(starts):
        assert torch.equal(inputs[row], windows[start][0]) and torch.equal(targets[row], windows[start][1])


def test_it_works_with_a_data_loader():
    loader = torch.utils.data.DataLoader(ShiftedWindowDataset(np.arange(9), 4), batch_size=5)
    inputs, targets = next(iter(loader))
    assert inputs.shape == (5, 4) and torch.equal(inputs + 1, targets)


def test_a_text_shorter_than_a_window_is_refused():
    ShiftedWindowDataset(np.arange(5), 4)
    with pytest.raises(ValueError, match="4 tokens hold no window of 4"):
        ShiftedWindowDataset(np.arange(4), 4)


@pytest.mark.parametrize("order", ["epochs", "random"])
def test_batches_are_a_pure_function_of_seed_step_and_rank(order):
    windows = ShiftedWindowDataset(np.arange(1000), 8)
    whole = batch_starts(windows, 8, seed=3, step=5, windows=order)
    assert np.array_equal(whole, batch_starts(windows, 8, seed=3, step=5, windows=order))
    assert not np.array_equal(whole, batch_starts(windows, 8, seed=3, step=6, windows=order))
    assert not np.array_equal(whole, batch_starts(windows, 8, seed=4, step=5, windows=order))
    shares = [batch_starts(windows, 8, seed=3, step=5, rank=rank, ranks=4, windows=order) for rank in range(4)]
    assert np.array_equal(np.concatenate(shares), whole)


def test_noise_takes_its_share_and_is_sampled_for_the_whole_batch():
    """Tokens of the text in its own proportions; a rank's part is a part of the whole."""
    tokens, inputs = np.repeat([7, 9], [900, 100]), torch.zeros(1000, 8, dtype=torch.int64)
    whole = add_token_noise(inputs, tokens, 0.2, 1000, 3, 5, 0, 1).numpy()
    assert whole.shape == (1000, 8) and set(np.unique(whole)) == {0, 7, 9}
    assert (whole > 0).mean() == pytest.approx(0.2, abs=0.02)
    assert (whole == 9).sum() / (whole > 0).sum() == pytest.approx(0.1, abs=0.03)
    shares = [add_token_noise(inputs[:250], tokens, 0.2, 1000, 3, 5, rank, 4).numpy() for rank in range(4)]
    assert np.array_equal(np.concatenate(shares), whole)
    assert not np.array_equal(whole, add_token_noise(inputs, tokens, 0.2, 1000, 3, 6, 0, 1).numpy())


def test_random_windows_begin_anywhere():
    windows = ShiftedWindowDataset(np.arange(20), 8)
    starts = [batch_starts(windows, 4, seed=0, step=step, windows="random") for step in range(100)]
    assert set(np.concatenate(starts)) == set(range(len(windows)))


@pytest.mark.parametrize("tokens, max_seq", [(1000, 8), (1003, 8), (9, 8), (20, 8), (17, 16)])
def test_an_epoch_reads_every_window_once(tokens, max_seq):
    """Side by side, in range, none twice; and the next epoch cuts the text at other places."""
    windows = ShiftedWindowDataset(np.arange(tokens), max_seq)
    per_epoch = max(1, (tokens - max_seq) // max_seq)
    starts = np.concatenate([batch_starts(windows, 3, seed=0, step=step) for step in range(2 * per_epoch)])
    first, second = starts[:per_epoch], starts[per_epoch : 2 * per_epoch]
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch), np.sort(epoch)[0] + max_seq * np.arange(per_epoch))
    assert starts.min() >= 0 and starts.max() < len(windows)
    assert per_epoch < 10 or not np.array_equal(first, second)


@pytest.mark.parametrize("tokens, max_seq", [(190, 64), (1000, 8), (1003, 8), (9, 8), (20, 8), (17, 16)])
def test_every_token_gets_its_turn(tokens, max_seq):
    """With 190 tokens and a window of 64, 62 of the 189 targets never came, in 300 epochs."""
    windows = ShiftedWindowDataset(np.arange(tokens), max_seq)
    per_epoch = max(1, len(windows) // max_seq)
    starts = [batch_starts(windows, per_epoch, seed=0, step=epoch) for epoch in range(1000)]
    targets = set(windows.batch(np.unique(np.concatenate(starts)))[1].flatten().tolist())
    assert targets == set(range(1, tokens))


# --- Texts -------------------------------------------------------------------------------------------------------


def test_a_file_is_split_by_position(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789" * 10)
    corpus = load_corpus(str(path))
    assert corpus.train.text() + corpus.val.text() == "0123456789" * 10
    assert len(corpus.train) == 90 and corpus.floor is None


def test_byte_order_marks_and_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé\r\nb\rc\n".encode() * 1)
    assert "".join(read_blocks(path)) == "é\nb\nc\n"


def test_other_encodings_name_file_and_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt is not UTF-8 text: byte 3 is 0xe9"):
        list(read_blocks(path))


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_texts_too_short_to_split_are_refused(tmp_path, content):
    path = tmp_path / "short.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="short.txt"):
        load_corpus(str(path))


def test_an_explicit_name_never_falls_back(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_corpus("tiny_shakespeare", tmp_path)
    with pytest.raises(OSError):
        load_corpus("tinyshakespeare", tmp_path, Download("http://127.0.0.1:9/x", "x.txt", 5, "0" * 64))


# --- Downloads ---------------------------------------------------------------------------------------------------


def source(url: str) -> Download:
    return Download(url, "text.txt", len(TEXT), hashlib.sha256(TEXT).hexdigest())


def test_auto_falls_back_loudly(tmp_path, capsys):
    nowhere = Download("http://127.0.0.1:9/x", "x.txt", 5, "0" * 64)
    assert load_corpus("auto", tmp_path, nowhere).name == "synthetic"
    assert "SYNTHETIC" in capsys.readouterr().err


def test_auto_takes_the_file_that_is_there(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    corpus = load_corpus("auto", tmp_path, source("http://127.0.0.1:9/never"))
    assert corpus.train.text() + corpus.val.text() == TEXT.decode()


@pytest.mark.tinyshakespeare
@pytest.mark.skipif(not (ROOT / "data/tinyshakespeare.txt").exists(), reason="needs data/tinyshakespeare.txt")
def test_the_real_tinyshakespeare():
    corpus = load_corpus("tinyshakespeare", ROOT / "data")
    assert (len(corpus.train), len(corpus.val)) == (1_003_854, 111_540)
    assert corpus.sha256 == data_setup.TINYSHAKESPEARE.sha256
    assert corpus.train.text().startswith("First Citizen:")


# --- The grammar -------------------------------------------------------------------------------------------------


def test_a_choice_scores_each_character_exactly():
    choice = Choice(["cat ", "car ", "dog "], [1, 1, 2])
    assert [[round(x, 6) for x in option] for option in choice.nats] == [
        [round(math.log(2), 6), 0, round(math.log(2), 6), 0],
        [round(math.log(2), 6), 0, round(math.log(2), 6), 0],
        [round(math.log(2), 6), 0, 0, 0],
    ]


def test_an_ambiguous_choice_is_refused():
    with pytest.raises(ValueError, match="ambiguous"):
        Choice(["king", "kingdom"], [1, 1])


def test_synthetic_text_is_seeded_and_of_any_length():
    for length in (1, 7, 12_345):
        text, nats = synthetic_text(length)
        assert len(text) == len(nats) == length
    assert synthetic_text(500)[0] == synthetic_text(12_345)[0][:500]
    assert synthetic_text(500, seed=1)[0] != synthetic_text(500)[0]


def test_the_floor_agrees_with_counted_frequencies():
    """An independent estimate: the entropy of what follows each long context, counted in another sample.

    Words behind "The " have one distribution whatever came before, so its counted entropy must match the nats that
    the generator reports for those very characters.
    """
    text, nats = synthetic_text(400_000, seed=9)
    spans = []
    start = text.find("\nThe ")
    while 0 <= start:
        begin = start + len("\nThe ")
        end = text.find(" ", begin) + 1
        if 0 < end:
            spans.append((begin, end))
        start = text.find("\nThe ", begin)
    counts = Counter(text[begin:end] for begin, end in spans)
    total = sum(counts.values())
    counted = -sum(n / total * math.log(n / total) for n in counts.values())
    reported = float(np.mean([nats[begin:end].sum() for begin, end in spans]))
    assert reported == pytest.approx(counted, rel=0.01)


def test_the_floor_is_a_probability_of_the_text():
    """Scored by a parser that shares no code with the generator: it reads the text back, choice by choice."""
    text, nats = synthetic_text(20_000, seed=2)
    weights = {kind: [rank**-0.5 for rank in range(1, len(words) + 1)] for kind, words in synthetic.WORDS.items()}
    cue_weights = [rank**-0.5 for rank in range(1, len(synthetic.SPEAKERS) + 1)]
    sentence_total = sum(weight for weight, _ in synthetic.SENTENCES)
    position, total, previous = 0, 0.0, None

    def read(options, masses):
        nonlocal position, total
        (index,) = [i for i, option in enumerate(options) if text.startswith(option, position)]
        position += len(options[index])
        total -= math.log(masses[index] / sum(masses))
        return index

    while position < 19_000:
        names = [i for i in range(len(cue_weights)) if i != previous]
        previous = names[read([synthetic.SPEAKERS[i] + ":\n" for i in names], [cue_weights[i] for i in names])]
        first = True
        while True:
            if not first and text.startswith("\n", position):
                total -= math.log(synthetic.SPEECH_ENDS / (sentence_total + synthetic.SPEECH_ENDS))
                position += 1
                break
            openings = [template.split("{")[0] for _, template in synthetic.SENTENCES]
            index = read(openings, [weight for weight, _ in synthetic.SENTENCES])
            if not first:  # beside the sentences there was the end of the speech to choose
                total -= math.log(sentence_total / (sentence_total + synthetic.SPEECH_ENDS))
            for slot in synthetic.SENTENCES[index][1].split("{")[1:]:
                kind, literal = slot.split("}")
                read([word + literal for word in synthetic.WORDS[kind]], weights[kind])
            first = False
    assert nats[:position].sum() == pytest.approx(total, rel=1e-9)
    assert nats.min() >= 0


def test_the_corpus_floor_is_that_of_its_validation_targets():
    text, nats = synthetic_text(50_000)
    corpus = data_setup.synthetic_corpus(50_000)
    assert corpus.train.text() + corpus.val.text() == text
    assert corpus.floor == pytest.approx(nats[45_001:].sum() / 4_999)
