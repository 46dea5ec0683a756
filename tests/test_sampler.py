"""Filters against brute force, draws against their distribution, the loop against single rows."""

import math
from itertools import product

import pytest
import torch
from sampling.decode import Reader

from conftest import given, settings, st, tiny_config
from sampler import (
    Sampling,
    draw,
    filter_stages,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    row_generators,
    uniform_numbers,
)
from tiny_decoder import TinyGPT

# Multiples of 1/4, so that ties are common.
LOGITS = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=7)


def softmax(logits: list[float]) -> list[float]:
    masses = [math.exp(x - max(logits)) if x > -math.inf else 0.0 for x in logits]
    return [mass / sum(masses) for mass in masses]


def kept(logits: torch.Tensor) -> set[int]:
    return {token for token, value in enumerate(logits[0].tolist()) if value > -math.inf}


def likeliest_first(logits: list[float]) -> list[int]:
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


@given(LOGITS, st.integers(1, 9))
def test_top_k_keeps_exactly_k(logits, k):
    assert kept(keep_top_k(torch.tensor([logits]), k)) == set(likeliest_first(logits)[:k])


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_with_the_mass(logits, p):
    """Brute force over all sets of tokens: none with mass p is smaller, none of its size is likelier."""
    found = kept(keep_top_p(torch.tensor([logits]), p))
    chances = softmax(logits)
    sets = [{t for t, wanted in enumerate(bits) if wanted} for bits in product((0, 1), repeat=len(logits))]
    size = min(len(chosen) for chosen in sets if sum(chances[t] for t in chosen) >= p - 1e-9)
    assert sum(chances[t] for t in found) >= p - 1e-9
    assert len(found) in (size, size + 1) and found == set(likeliest_first(logits)[: len(found)])
    if len(found) > size:  # only where the smaller set has the mass but for rounding
        assert math.isclose(sum(chances[t] for t in likeliest_first(logits)[:size]), p, abs_tol=1e-6)


@given(LOGITS, st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_likely_enough(logits, min_p):
    found, chances = kept(keep_min_p(torch.tensor([logits]), min_p)), softmax(logits)
    for token, chance in enumerate(chances):
        if not math.isclose(chance, min_p * max(chances), rel_tol=1e-5):
            assert (token in found) == (chance > min_p * max(chances))


def test_min_p_of_one_keeps_the_likeliest():
    assert kept(keep_min_p(torch.tensor([[1.0, 3.0, 3.0, -1.0]]), 1.0)) == {1, 2}


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    logits, seen = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]]), torch.tensor([[True, True, False, False, True]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0, 0.0]]


@settings(max_examples=50)
@given(LOGITS, st.integers(0, 5), st.floats(0.1, 1.0), st.floats(0.0, 1.0), st.sampled_from([0, 0.5, 1, 3]))
def test_filters_combine_in_order_and_leave_a_token(logits, top_k, top_p, min_p, temperature):
    sampling = Sampling(temperature, top_k, top_p, min_p, 1.5)
    seen = torch.zeros(1, len(logits), dtype=torch.bool)
    seen[0, 0] = True
    stages = filter_stages(torch.tensor([logits]), seen, sampling)
    order = ["model", "penalty", "temperature", "top-k", "top-p", "min-p"]
    names = [name for name, _logits in stages]
    assert names == [name for name in order if name in names]
    sizes = [len(kept(outcome)) for _name, outcome in stages]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1
    chances = stages[-1][1].double().softmax(-1)
    assert math.isclose(chances.sum().item(), 1, abs_tol=1e-9)


def test_switched_off_filters_do_nothing():
    logits = torch.tensor([[1.0, 2.0, 2.0]])
    assert [name for name, _ in filter_stages(logits, None, Sampling())] == ["model"]
    assert [name for name, _ in filter_stages(logits, None, Sampling(top_k=9))] == ["model"]  # k above V


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-6])
def test_no_temperature_is_too_low(temperature):
    logits = torch.tensor([[1.0, 3.0, -2.0]])
    chances = filter_stages(logits, None, Sampling(temperature=temperature))[-1][1].softmax(-1)
    assert chances.tolist() == [[0.0, 1.0, 0.0]]


def test_greedy_takes_the_first_of_equals():
    stages = filter_stages(torch.tensor([[3.0, 5.0, 5.0]]), None, Sampling(temperature=0))
    assert kept(stages[-1][1]) == {1}


def test_draws_follow_the_probabilities():
    """Chi-square over 20,000 draws, 4 degrees of freedom: 18.5 is exceeded once in a thousand seeds."""
    chances = torch.tensor([0.4, 0.3, 0.0, 0.2, 0.07, 0.03], dtype=torch.float64)
    count = 20_000
    uniforms = next(uniform_numbers(row_generators(5, count), ahead=1))
    drawn = torch.tensor(draw(chances.expand(count, -1), uniforms)).bincount(minlength=6)
    assert drawn[2] == 0
    expected = count * chances[chances > 0]
    assert ((drawn[chances > 0] - expected) ** 2 / expected).sum() < 18.5


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.49, 1), (0.5, 3), (1.0, 3)])
def test_draw_at_the_ends_never_takes_an_impossible_token(uniform, token):
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    assert draw(chances, torch.tensor([[uniform]], dtype=torch.float64)) == [token]


@pytest.fixture
def model() -> TinyGPT:
    torch.manual_seed(3)
    return TinyGPT(tiny_config(num_layers=2)).eval()


ORDINARY = Sampling(0.9)


def rows_of(model, prompts, seed, count, sampling=ORDINARY, **options) -> list[list[int]]:
    """The new tokens of every row."""
    steps = list(generate(Reader(model, prompts), count, row_generators(seed, len(prompts)), sampling, **options))
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize("sampling", [Sampling(0.9), Sampling(1.2, 5, 0.9, 0.01, 1.3), Sampling(0)])
def test_ragged_batch_makes_the_texts_of_single_rows(model, sampling):
    prompts = [[1], [2, 3, 4, 5, 6, 7, 8], [2, 3], [4, 4, 4, 4, 4]]
    together = rows_of(model, prompts, 10, 15, sampling)
    alone = [rows_of(model, [prompt], 10 + i, 15, sampling)[0] for i, prompt in enumerate(prompts)]
    assert together == alone


def test_text_is_that_of_the_plain_sliding_window(model):
    """The loop without any cache, written out: the plain way to sample, past the window too."""
    tokens, generator = [1, 2], torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _ in range(30):
            chances = (model(torch.tensor([tokens[-6:]]))[0, -1] / 0.9).softmax(-1).double()
            uniform = torch.rand((), generator=generator, dtype=torch.float64)
            tokens.append(int((chances.cumsum(-1) > uniform * chances.sum()).nonzero()[0]))
    assert rows_of(model, [[1, 2]], 7, 30) == [tokens[2:]]


def test_text_does_not_depend_on_the_global_generator(model):
    torch.manual_seed(0)
    first = rows_of(model, [[1]], 5, 20)
    torch.manual_seed(1)
    torch.rand(3)
    assert rows_of(model, [[1]], 5, 20) == first
    assert rows_of(model, [[1]], 6, 20) != first


def test_banned_tokens_are_never_drawn(model):
    never = (0, 1, 2, 3)
    assert not set(rows_of(model, [[1]], 0, 200, Sampling(5.0), never=never)[0]) & set(never)


def test_repetition_penalty_counts_the_prompt_and_the_new_tokens(model):
    """A penalty beyond all bounds forbids every seen token: 11 tokens are used up without a repetition."""
    with torch.no_grad():
        model.head.bias += 10  # positive logits, which the penalty divides
    (row,) = rows_of(model, [[4, 7]], 0, 9, Sampling(0.01, repetition_penalty=1e6))
    assert sorted([4, 7, *row]) == list(range(11))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_stop_the_loop(model, value):
    with torch.no_grad():
        model.head.bias[3] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        rows_of(model, [[1]], 0, 1)


def test_watcher_sees_the_filters_and_the_choice(model):
    seen = []
    (row,) = rows_of(model, [[1]], 0, 3, Sampling(0.5, 2), watch=lambda stages, chosen: seen.append((stages, chosen)))
    assert [chosen for _, [chosen] in seen] == row
    assert all([name for name, _ in stages] == ["model", "temperature", "top-k"] for stages, _ in seen)
    assert all(chosen in kept(stages[-1][1]) for stages, [chosen] in seen)
