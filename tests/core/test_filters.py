"""Filters on logits against brute force, for random logits."""

import math
from itertools import product

import pytest
import torch

from helpers import survivors
from sampler import Sampling, filter_stages, keep_min_p, keep_top_k, keep_top_p

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

LOGITS = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=7)  # quarters: ties are common


def softmax(logits: list[float]) -> list[float]:
    masses = [math.exp(x - max(logits)) if x > -math.inf else 0.0 for x in logits]
    return [mass / sum(masses) for mass in masses]


def likeliest_first(logits: list[float]) -> list[int]:
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


@given(LOGITS, st.integers(1, 9))
def test_top_k_keeps_exactly_k(logits, k):
    assert survivors(keep_top_k(torch.tensor([logits]), k)) == set(likeliest_first(logits)[:k])


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_with_the_mass(logits, p):
    """Brute force over all sets of tokens: none with mass p is smaller, none of its size is likelier."""
    nucleus = survivors(keep_top_p(torch.tensor([logits]), p))
    chances = softmax(logits)
    sets = [{t for t, wanted in enumerate(bits) if wanted} for bits in product((0, 1), repeat=len(logits))]
    size = min(len(chosen) for chosen in sets if sum(chances[t] for t in chosen) >= p - 1e-9)
    assert sum(chances[t] for t in nucleus) >= p - 1e-9
    assert len(nucleus) in (size, size + 1) and nucleus == set(likeliest_first(logits)[: len(nucleus)])
    if len(nucleus) > size:  # only where the smaller set has the mass but for rounding
        assert math.isclose(sum(chances[t] for t in likeliest_first(logits)[:size]), p, abs_tol=1e-6)


@given(LOGITS, st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_likely_enough(logits, min_p):
    remaining, chances = survivors(keep_min_p(torch.tensor([logits]), min_p)), softmax(logits)
    for token, chance in enumerate(chances):
        if not math.isclose(chance, min_p * max(chances), rel_tol=1e-5):
            assert (token in remaining) == (chance > min_p * max(chances))


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
    sizes = [len(survivors(outcome)) for _name, outcome in stages]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1
