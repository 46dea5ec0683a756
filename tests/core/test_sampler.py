"""Filters, draws against their distribution, the loop against single rows and against the plain loop."""

import math

import pytest
import torch

from helpers import sampled_ids, tiny_config
from sampler import Sampling, filter_stages, penalize_repetition, row_generators, sample, uniform_numbers
from tiny_decoder import TinyGPT


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    logits, seen = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]]), torch.tensor([[True, True, False, False, True]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0, 0.0]]


def test_switched_off_filters_do_nothing():
    logits = torch.tensor([[1.0, 2.0, 2.0]])
    assert [name for name, _ in filter_stages(logits, None, Sampling())] == ["model"]
    assert [name for name, _ in filter_stages(logits, None, Sampling(top_k=9))] == ["model"]  # k above V


@pytest.mark.parametrize(
    "temperature, logits",
    [(0.0, [1, 3, -2]), (0.0, [1, 3, 3]), (1e-60, [1, 3, 3]), (1e-30, [1, 3, 2]), (1e-6, [1, 3, 2])],
)
def test_near_temperature_0_the_first_of_the_likeliest_is_certain(temperature, logits):
    stages = filter_stages(torch.tensor([logits]).float(), None, Sampling(temperature))
    assert stages[-1][1].softmax(-1).tolist() == [[0.0, 1.0, 0.0]]


def test_draws_follow_the_probabilities():
    """Chi-square over 20,000 draws, 4 degrees of freedom: 18.5 is exceeded once in a thousand seeds."""
    chances = torch.tensor([0.4, 0.3, 0.0, 0.2, 0.07, 0.03], dtype=torch.float64)
    count = 20_000
    uniforms = next(uniform_numbers(row_generators(5, count), ahead=1))
    drawn = torch.tensor(sample(chances.expand(count, -1), uniforms)).bincount(minlength=6)
    assert drawn[2] == 0
    expected = count * chances[chances > 0]
    assert ((drawn[chances > 0] - expected) ** 2 / expected).sum() < 18.5


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.49, 1), (0.5, 3), (1.0, 3)])
def test_draw_at_the_ends_never_takes_an_impossible_token(uniform, token):
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    assert sample(chances, torch.tensor([[uniform]], dtype=torch.float64)) == [token]


@pytest.fixture
def model() -> TinyGPT:
    torch.manual_seed(3)
    return TinyGPT(tiny_config(num_layers=2)).eval()


ORDINARY = Sampling(0.9)


def plain_text(model, tokens: list[int], seed: int, count: int) -> list[int]:
    """The loop without any cache, written out: the plain way to sample, past the window too."""
    tokens, generator = list(tokens), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(count):
            chances = (model(torch.tensor([tokens[-6:]]))[0, -1] / 0.9).softmax(-1).double()
            uniform = torch.rand((), generator=generator, dtype=torch.float64)
            tokens.append(int((chances.cumsum(-1) > uniform * chances.sum()).nonzero()[0]))
    return tokens


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_with_stride_1_a_text_is_that_of_the_plain_loop_token_for_token(model, seed):
    with torch.no_grad():
        model.head.weight *= 20  # opinions that depend on the whole window
    expected = plain_text(model, [1, 2], seed, 100)
    assert sampled_ids(model, [1, 2], 100, ORDINARY, seed=seed, stride=1) == expected[2:]
    assert sampled_ids(model, [1, 2], 4, ORDINARY, seed=seed) == expected[2:6], "any stride, while the window has room"
    assert sampled_ids(model, [1, 2], 100, ORDINARY, seed=seed) != expected[2:]


def test_text_does_not_depend_on_the_global_generator(model):
    torch.manual_seed(0)
    first = sampled_ids(model, [1], 20, ORDINARY, seed=5)
    torch.manual_seed(1)
    torch.rand(3)
    assert sampled_ids(model, [1], 20, ORDINARY, seed=5) == first
    assert sampled_ids(model, [1], 20, ORDINARY, seed=6) != first


def test_suppressed_tokens_are_never_sampled(model):
    special = (0, 1, 2, 3)
    assert not set(sampled_ids(model, [1], 200, Sampling(5.0), special)) & set(special)


def test_repetition_penalty_counts_the_prompt_and_the_new_tokens(model):
    """A penalty beyond all bounds forbids every seen token: 11 tokens are used up without a repetition."""
    with torch.no_grad():
        model.final_norm.bias.fill_(1)
        model.head.weight += 1  # positive logits, which the penalty divides
    tokens = sampled_ids(model, [4, 7], 9, Sampling(0.01, repetition_penalty=1e6))
    assert sorted([4, 7, *tokens]) == list(range(11))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_stop_the_loop(model, value):
    with torch.no_grad():
        model.head.weight[3, 0] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        sampled_ids(model, [1], 1)
