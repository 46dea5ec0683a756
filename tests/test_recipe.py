"""The recipe: schedule, presets, the optimizers against independent oracles, and that learning sees no leak."""

import pytest
import torch

from conftest import tiny_config
from recipe import PRESETS, Muon, TrainSettings, lr_factor, make_optimizers, orthogonalize
from tiny_decoder import TinyGPT


def test_the_rate_rises_then_falls_to_zero():
    settings = TrainSettings(steps=100, warmup=0.1)
    factors = [lr_factor(step, settings) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[-1] == pytest.approx(1 / 90)


def test_the_cosine_falls_to_a_tenth():
    settings = TrainSettings(steps=100, warmup=0.1, schedule="cosine")
    assert lr_factor(10, settings) == 1 and lr_factor(55, settings) == pytest.approx(0.55)
    assert lr_factor(100, settings) == pytest.approx(0.1)


def test_every_preset_is_valid():
    for preset, changes in PRESETS.items():
        TrainSettings(**{"preset": preset, **changes})


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_orthogonalize_evens_out_the_singular_values(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    before = torch.linalg.svdvals(matrices)
    after = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert before.max() / before.min() > 2
    assert after.max() < 1.3 and after.min() > 0.3


def test_orthogonalize_keeps_the_singular_vectors():
    """By algebra: for m = u s v', the result is u s' v', so u' r v is diagonal."""
    m = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(m, full_matrices=False)
    core = u.T @ orthogonalize(m[None])[0] @ vt.T
    assert (core - core.diag().diag()).abs().max() < 0.1


def test_muon_equals_pytorchs_on_single_matrices():
    """torch.optim.Muon is the oracle; it takes the same momentum, iteration and scale for a matrix by itself."""
    torch.manual_seed(0)
    start = torch.randn(8, 8)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    own = Muon([ours], lr=0.1, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.1, nesterov=True)
    for _ in range(3):
        gradient = torch.randn(8, 8)
        for parameter, optimizer in ((ours, own), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    assert (ours - start).abs().max() > 0.05


def test_packed_matrices_are_treated_as_three():
    torch.manual_seed(0)
    start, gradient = torch.randn(12, 4), torch.randn(12, 4)
    packed = torch.nn.Parameter(start.clone())
    packed.grad = gradient.clone()
    Muon([{"params": [packed], "parts": 3}], lr=0.1, momentum=0.9).step()
    for part, part_gradient, result in zip(start.chunk(3), gradient.chunk(3), packed.chunk(3), strict=True):
        single = torch.nn.Parameter(part.clone())
        single.grad = part_gradient.clone()
        Muon([single], lr=0.1, momentum=0.9).step()
        torch.testing.assert_close(result, single)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer_and_only_matrices_decay(optimizer):
    model = TinyGPT(tiny_config())
    optimizers = make_optimizers(model, TrainSettings(optimizer=optimizer, weight_decay=0.5))
    groups = [group for o in optimizers for group in o.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = model.parameters() if optimizer == "adamw" else model.blocks.parameters()
    assert decaying == {id(p) for p in matrices if p.ndim >= 2}
    assert [type(o) for o in optimizers] == [torch.optim.AdamW, Muon][: len(optimizers)]
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
