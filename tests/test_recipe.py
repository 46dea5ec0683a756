"""The recipe: schedule, presets, the optimizers against independent oracles, and that learning sees no leak."""

import pytest
import torch

from conftest import tiny_config
from formats.checkpoint import TRAINING, load_checkpoint
from main import evaluate, report, train_step
from recipe import PRESETS, Muon, TrainSettings, WeightAverage, lr_factor, make_optimizers, noise_share, orthogonalize
from tiny_decoder import TinyGPT
from training.run import start_run


def test_the_rate_rises_then_falls_to_zero():
    settings = TrainSettings(steps=100, warmup=10)
    factors = [lr_factor(step, settings) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[-1] == pytest.approx(1 / 90)


def test_the_cosine_falls_to_a_tenth():
    settings = TrainSettings(steps=100, warmup=10, schedule="cosine")
    assert lr_factor(10, settings) == 1 and lr_factor(55, settings) == pytest.approx(0.55)
    assert lr_factor(100, settings) == pytest.approx(0.1)


def test_the_noise_falls_to_nothing():
    settings = TrainSettings(steps=101, warmup=0, token_noise=0.2)
    assert [noise_share(step, settings) for step in (0, 1, 51, 101)] == [0.2, 0.2, 0.1, 0.0]


def test_the_rate_and_the_noise_fall_in_the_last_steps_alone():
    settings = TrainSettings(steps=100, warmup=10, decay=0.2, token_noise=0.2)
    assert [lr_factor(step, settings) for step in (0, 9, 50, 80, 90, 100)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0])
    assert [noise_share(step, settings) for step in (0, 50, 80, 90, 100)] == pytest.approx([0.2, 0.2, 0.2, 0.1, 0])
    settings = TrainSettings(steps=100, decay=0.0, token_noise=0.2)  # never: the run may go on for as long as one likes
    assert [lr_factor(step, settings) for step in (50, 99)] == [1, 1] and noise_share(99, settings) == 0.2


def test_the_average_follows_its_formula_and_is_put_in_place_for_a_while():
    model = torch.nn.Linear(1, 1, bias=False)
    seen, expected = [1.0, 5.0, 2.0, -3.0], 7.0
    model.weight.data.fill_(expected)
    average = WeightAverage(model, 0.2)
    for step, value in enumerate(seen, start=1):
        model.weight.data.fill_(value)
        average.update(step)
        keep = min(0.2, step / (step + 10))  # at first less than 0.2
        expected = keep * expected + (1 - keep) * value
    assert average.averages["weight"].item() == pytest.approx(expected)
    with pytest.raises(KeyError), average.in_place():
        assert model.weight.item() == average.averages["weight"].item()
        raise KeyError
    assert model.weight.item() == -3


def test_the_average_is_of_what_is_trained_alone():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert set(WeightAverage(model, 0.9).averages) == {"1.weight", "1.bias"}


def test_validation_and_the_best_model_are_of_the_average(tmp_path):
    out, shape = str(tmp_path / "m.pth"), dict(max_seq=16, embed_dim=16, num_heads=2, num_layers=1, batch_size=4)
    settings = TrainSettings(data="synthetic", average=0.9, steps=8, out=out, dtype="float32", **shape)
    run = start_run(settings, torch.device("cpu"))
    for _ in range(8):
        train_step(run)
    report(run, 0.0, 1.0)
    saved, state = load_checkpoint(tmp_path / "m.pth"), load_checkpoint(tmp_path / "m.last.pth", TRAINING)
    for name, p in run.model.named_parameters():
        assert torch.equal(saved.model.state_dict()[name], run.average.averages[name])
        assert torch.equal(state.model.state_dict()[name], p) and not torch.equal(p, run.average.averages[name])
    moving = evaluate(run)
    with run.average.in_place():
        assert evaluate(run) == run.best_loss != moving


def test_every_preset_is_valid():
    for preset, changes in PRESETS.items():
        TrainSettings(**{"preset": preset, **changes})


@pytest.mark.parametrize(
    "preset, shape",
    [("reference", (256, 384, 6, 6, 64, 5000, 0.2, 100)), ("reference-cpu", (64, 128, 4, 4, 12, 2000, 0.0, 100))],
)
def test_the_references_are_nanogpts_and_do_not_follow_our_defaults(preset, shape):
    """nanoGPT's config/train_shakespeare_char.py, and the flags for CPUs in its README."""
    s = TrainSettings(**PRESETS[preset])
    assert shape[:4] == (s.max_seq, s.embed_dim, s.num_heads, s.num_layers)
    assert shape[4:] == (s.batch_size, s.steps, s.dropout, s.warmup)
    assert s.attention_dropout == s.dropout and s.token_noise == s.average == 0 and s.grad_accum == 1
    assert (s.optimizer, s.lr, s.weight_decay, s.clip, s.schedule) == ("adamw", 1e-3, 0.1, 1.0, "cosine")
    assert (s.init, s.windows, s.dtype, s.decay) == ("normal", "random", "float32", 1)
    (adamw,) = make_optimizers(TinyGPT(tiny_config()), s)
    assert all(group["betas"] == (0.9, 0.99) for group in adamw.param_groups)
    with_defaults = {name for name in ("dropout", "attention_dropout", "weight_decay", "clip", "token_noise", "warmup",
                     "decay", "average", "init", "windows", "optimizer", "lr", "schedule",
                     "dtype")} - PRESETS[preset].keys()  # fmt: skip
    assert not with_defaults


@pytest.mark.parametrize(
    "change",
    [
        {"init": "sinusoid"}, {"windows": "random"}, {"token_noise": 0.5}, {"attention_dropout": 0.5}, {"dropout": 0.5},
        {"optimizer": "adamw"}, {"muon_lr": 0.1}, {"muon_momentum": 0.5}, {"weight_decay": 9.0}, {"lr": 0.1},
        {"warmup": 4}, {"schedule": "cosine"}, {"decay": 0.5}, {"clip": 0.01}, {"dtype": "bfloat16"}, {"seed": 1},
    ],
)  # fmt: skip
def test_every_choice_of_the_recipe_reaches_the_training(change):
    """Three steps with the choice changed leave other weights than three without; three without leave the same."""

    def weights(**changes) -> torch.Tensor:
        shape = dict(max_seq=16, embed_dim=16, num_heads=2, num_layers=1, batch_size=4, steps=8, warmup=0)
        settings = TrainSettings(**{"data": "synthetic", "dtype": "float32", **shape, **changes})
        run = start_run(settings, torch.device("cpu"))
        for _ in range(3):
            train_step(run)
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(**change), weights())


@pytest.mark.slow
@pytest.mark.parametrize("preset, steps", [("tiny", 60), ("small", 50)])
def test_ten_seeds_learn_and_none_diverges(preset, steps):
    """The rates at their highest, whatever the seed: the loss falls, never below the floor, and the spread is small."""
    losses = []
    for seed in range(10):
        settings = TrainSettings(**{**PRESETS[preset], "preset": preset, "data": "synthetic", "seed": seed})
        run = start_run(settings, torch.device("cpu"))
        for _ in range(steps):
            train_step(run)
        losses.append(evaluate(run))
        assert run.corpus.floor < losses[-1]
    assert max(losses) < 2.0 and max(losses) - min(losses) < 0.3, losses


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


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16)])
def test_muon_equals_pytorchs_on_single_matrices(shape):
    """torch.optim.Muon is the oracle; it takes the same momentum, iteration and scale for a matrix by itself."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    own = Muon([ours], lr=0.1, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.1, nesterov=True)
    for _ in range(3):
        gradient = torch.randn(shape)
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
