"""Beam search against exhaustive search, scores against the model's own log-probabilities."""

from itertools import product

import pytest
import torch

from helpers import tiny_config
from sampler import SlidingWindow
from sampling.beam import beam_search
from tiny_decoder import TinyGPT

VOCABULARY, HORIZON, PROMPT = 4, 4, [1, 2, 3]


@pytest.fixture
def model() -> TinyGPT:
    """max_seq 5: the window slides within the horizon."""
    torch.manual_seed(2)
    model = TinyGPT(tiny_config(vocab_size=VOCABULARY, max_seq=5, num_layers=2)).eval()
    with torch.no_grad():
        model.head.weight *= 40  # opinions, so that beams fork and die
    return model


def log_probability(model: TinyGPT, tokens: list[int]) -> float:
    """The sum over the continuation's tokens by plain forward passes, one window each."""
    text, total = list(PROMPT), 0.0
    with torch.no_grad():
        for token in tokens:
            total += model(torch.tensor([text[-5:]]))[0, -1].double().log_softmax(-1)[token].item()
            text.append(token)
    return total


def search(model, width, length=HORIZON, **options):
    return beam_search(SlidingWindow(model, [PROMPT] * width, stride=1), length, width, **options)


def test_wide_beam_is_exhaustive_search(model):
    everything = [list(tokens) for tokens in product(range(VOCABULARY), repeat=HORIZON)]
    expected = sorted(everything, key=lambda tokens: -log_probability(model, tokens))
    found = search(model, VOCABULARY**HORIZON)
    assert [hypothesis.tokens for hypothesis in found] == expected


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0])
def test_wide_beam_is_exhaustive_where_texts_end_early(model, length_penalty):
    """Token 0 ends a text, so lengths differ and the length penalty decides."""
    texts = {
        tuple(tokens[: tokens.index(0) + 1] if 0 in tokens else tokens)
        for tokens in product(range(VOCABULARY), repeat=HORIZON)
    }
    score = {text: log_probability(model, list(text)) / len(text) ** length_penalty for text in texts}
    found = search(
        model, VOCABULARY**HORIZON, length_penalty=length_penalty, follow=lambda state, token: (None, token == 0)
    )
    assert [tuple(h.tokens) for h in found] == sorted(texts, key=lambda text: -score[text])
    for hypothesis in found:
        assert hypothesis.score(length_penalty) == pytest.approx(score[tuple(hypothesis.tokens)], abs=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_scores_are_the_models_log_probabilities(model, width):
    """Also past the window, and with a cache that must follow the beams when they fork."""
    found = search(model, width, length=9)
    assert len(found) == width and len({tuple(h.tokens) for h in found}) == width
    for hypothesis in found:
        assert hypothesis.log_probability == pytest.approx(log_probability(model, hypothesis.tokens), abs=1e-5)
        assert hypothesis.score(1.0) == pytest.approx(hypothesis.log_probability / 9)
    scores = [h.score(1.0) for h in found]
    assert scores == sorted(scores, reverse=True)


def test_narrow_beam_is_the_textbook_algorithm(model):
    """Width 3 against a few plain lines that keep whole texts and recompute everything."""
    beams = [[]]
    for _ in range(9):
        extended = [[*tokens, token] for tokens in beams for token in range(VOCABULARY)]
        beams = sorted(extended, key=lambda tokens: -log_probability(model, tokens))[:3]
    assert [hypothesis.tokens for hypothesis in search(model, 3, length=9)] == beams


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("ends", [{0}, {0, 1, 2}, {1, 2, 3}, {0, 2, 3}])
def test_narrow_beam_goes_on_however_many_texts_end(model, width, ends):
    """A text that ends leaves its place to the next best; the oracle sorts all extensions, step by step."""
    beams, done = [[]], []
    for _ in range(5):
        extended = [[*tokens, token] for tokens in beams for token in range(VOCABULARY)]
        beams = []
        for tokens in sorted(extended, key=lambda tokens: -log_probability(model, tokens)):
            (done if tokens[-1] in ends else beams).append(tokens)
            if len(beams) == width:
                break
    expected = sorted(done + beams, key=lambda tokens: -log_probability(model, tokens) / len(tokens))[:width]
    found = search(model, width, length=5, follow=lambda state, token: (None, token in ends))
    assert [hypothesis.tokens for hypothesis in found] == expected


def test_width_one_is_greedy(model):
    text = list(PROMPT)
    with torch.no_grad():
        for _ in range(9):
            text.append(int(model(torch.tensor([text[-5:]]))[0, -1].argmax()))
    assert [h.tokens for h in search(model, 1, length=9)] == [text[3:]]


def test_suppressed_tokens_are_left_out(model):
    assert all(not set(h.tokens) & {0, 2} for h in search(model, 3, suppress_tokens=(0, 2)))


def test_no_new_tokens_is_the_empty_text(model):
    (hypothesis,) = search(model, 1, length=0)
    assert (hypothesis.tokens, hypothesis.log_probability) == ([], 0.0)


def test_width_must_fit_the_window(model):
    with pytest.raises(ValueError, match="width 3"):
        beam_search(SlidingWindow(model, [PROMPT]), 2, 3)
