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


def search(model, width, length=HORIZON, ends=(), **options):
    """Beam search in which the tokens `ends` end a text."""
    window = SlidingWindow(model, [PROMPT] * width, stride=1)
    return beam_search(window, length, lambda tokens: tokens[-1] in ends, **options)


@pytest.mark.parametrize(("ends", "length_penalty"), [((), 1.0), ((0,), 0.0), ((0,), 0.7), ((0,), 2.0)])
def test_wide_beam_is_exhaustive_search(model, ends, length_penalty):
    """Where token 0 ends a text, lengths differ and the length penalty decides."""
    everything = product(range(VOCABULARY), repeat=HORIZON)
    texts = {text[: text.index(0) + 1] if ends and 0 in text else text for text in everything}
    score = {text: log_probability(model, list(text)) / len(text) ** length_penalty for text in texts}
    best = search(model, VOCABULARY**HORIZON, ends=ends, length_penalty=length_penalty)
    assert [tuple(h.tokens) for h in best] == sorted(texts, key=lambda text: -score[text])
    for hypothesis in best:
        assert hypothesis.score(length_penalty) == pytest.approx(score[tuple(hypothesis.tokens)], abs=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("ends", [set(), {0}, {0, 1, 2}, {1, 2, 3}, {0, 2, 3}])
def test_narrow_beam_is_the_textbook_algorithm(model, width, ends):
    """A text that ends makes room for the next best; the oracle keeps whole texts and sorts all extensions. Past the
    window too, and with a cache that must follow the beams when they fork."""
    beams, done = [[]], []
    for _ in range(7):
        extended = [[*tokens, token] for tokens in beams for token in range(VOCABULARY)]
        beams = []
        for tokens in sorted(extended, key=lambda tokens: -log_probability(model, tokens)):
            (done if tokens[-1] in ends else beams).append(tokens)
            if len(beams) == width:
                break
    expected = sorted(done + beams, key=lambda tokens: -log_probability(model, tokens) / len(tokens))[:width]
    best = search(model, width, length=7, ends=ends)
    assert [hypothesis.tokens for hypothesis in best] == expected
    for hypothesis in best:
        assert hypothesis.log_probability == pytest.approx(log_probability(model, hypothesis.tokens), abs=1e-5)


def test_suppressed_tokens_are_left_out(model):
    assert all(not set(h.tokens) & {0, 2} for h in search(model, 3, suppress_tokens=(0, 2)))
