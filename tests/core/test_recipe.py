"""The recipe: schedule, presets, the optimizers against independent oracles, and that learning sees no leak."""

import argparse
import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks.nanogpt import FLAGS
from formats.checkpoint import TRAINING, load_model, read_checkpoint
from helpers import new_run, tiny_config
from main import evaluate, train_step
from optimizers import Muon, averaged_model, distillation_loss, make_optimizers, orthogonalize
from recipe import PRESETS, SHORT_TEXT, distill_share, lr_factor, parse_flags, preset_settings
from support.command import UserError, flag_of
from tiny_decoder import TinyGPT, next_token_loss
from training.checks import saved_settings
from training.save import save_best, save_state

SHAPE = dict(max_seq=16, embed_dim=16, num_heads=2, num_layers=1, batch_size=4)


def recipe(**changes) -> argparse.Namespace:
    """The settings of a command line with these flags."""
    return parse_flags(flags_of(**changes))[0]


def flags_of(**changes) -> list[str]:
    return [f"{flag_of(name)}={value}" for name, value in {"preset": "plain", "device": "cpu", **changes}.items()]


# --- The schedule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, {0: 1 / 11, 9: 10 / 11, 10: 1, 55: 0.5, 99: 1 / 90, 100: 0}),
        ({"schedule": "cosine"}, {0: 1 / 11, 10: 1, 55: 0.55, 100: 0.1}),
        ({"cooldown": 0.2}, {0: 1 / 11, 9: 10 / 11, 10: 1, 50: 1, 80: 1, 90: 0.5, 100: 0}),
        ({"cooldown": 0.0}, {10: 1, 50: 1, 99: 1}),  # never: the run may go on for as long as one likes
    ],
)
def test_the_learning_rate_rises_stays_and_falls(changes, expected):
    settings = recipe(steps=100, warmup=10, **changes)
    assert {step: lr_factor(step, settings) for step in expected} == pytest.approx(expected)


def test_the_average_follows_its_formula():
    """It begins as the first weights that it sees; at first it keeps less than the share it is asked for."""
    model = torch.nn.Linear(1, 1, bias=False)
    average, seen = averaged_model(model, 0.25), [1.0, 5.0, 2.0, -3.0, 4.0]
    for value in seen:
        model.weight.data.fill_(value)
        average.update_parameters(model)
    expected = seen[0]
    for value, keep in zip(seen[1:], (2 / 12, 3 / 13, 1 / 4, 1 / 4), strict=True):
        expected = keep * expected + (1 - keep) * value
    assert average.module.weight.item() == pytest.approx(expected) and model.weight.item() == 4


def test_the_distillation_loss_follows_its_formula():
    """-sum p ln q; with all of p on one token it is the usual loss, and it is lowest where q = p."""
    logits, teacher = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(distillation_loss(logits, teacher), -(p * q.log()).sum(-1).mean())
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    certain = 100.0 * torch.nn.functional.one_hot(targets, 5)
    torch.testing.assert_close(distillation_loss(logits, certain), next_token_loss(logits, targets))
    (gradient,) = torch.autograd.grad(distillation_loss(logits, logits.detach()), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)


def test_the_teachers_share_of_the_loss_begins_after_the_warm_up():
    """And does not depend on the number of steps before that: `--steps N` must repeat a planned run."""
    settings = recipe(steps=100, warmup=10, ema_decay=0.9, distill=0.5)
    shares = {0: 0, 9: 0, 10: 0.5 / 3, 15: 0.25, 30: 0.5, 99: 0.5}
    assert {step: distill_share(step, settings) for step in shares} == pytest.approx(shares)
    with pytest.raises(UserError, match="--distill needs --ema-decay"):
        recipe(distill=0.5)


def test_a_step_learns_from_the_average_and_reports_the_loss_on_the_text():
    losses, weights = {}, {}
    for share in (0.0, 0.5):
        flags = flags_of(data="synthetic", ema_decay=0.9, distill=share, steps=8, warmup=4, dtype="float32", **SHAPE)
        run = new_run(*flags)
        losses[share] = [train_step(run, run.model) for _ in range(6)]
        weights[share] = run.model.head.weight
    assert losses[0.0][:5] == losses[0.5][:5] and losses[0.0][5] != losses[0.5][5]
    assert not torch.equal(weights[0.0], weights[0.5])


def test_validation_and_the_best_model_are_of_the_average(tmp_path):
    out = tmp_path / "m.pth"
    run = new_run(*flags_of(data="synthetic", ema_decay=0.9, steps=8, out=out, dtype="float32", **SHAPE))
    for _ in range(8):
        train_step(run, run.model)
    val_loss = evaluate(run)
    run.state.note_evaluation(val_loss)
    save_best(run)
    save_state(run)
    best = load_model(tmp_path / "m.pth").model.state_dict()
    _, state = read_checkpoint(tmp_path / "m.last.pth", TRAINING)
    averages = dict(run.average.module.named_parameters())
    for name, p in run.model.named_parameters():
        assert torch.equal(best[name], averages[name]) and torch.equal(state[f"average/{name}"], averages[name])
        assert torch.equal(state[name], p) and not torch.equal(p, averages[name])
    run.average = None
    assert evaluate(run) != val_loss
    run.model.load_state_dict(best)
    assert evaluate(run) == val_loss


# --- Presets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_shown_by_help_and_comes_back_from_a_file(output_of, preset):
    settings, page = preset_settings(preset), output_of("main.py", "--preset", preset, "--help")
    for name, value in PRESETS[preset].items():
        assert getattr(settings, name) == value
        if type(value) is not bool:
            entry = re.search(rf"^  {flag_of(name)} .*?(?=^  -|^$)", page, re.MULTILINE | re.DOTALL)[0]
            assert f"(default: {value})" in " ".join(entry.split())
    assert saved_settings(vars(settings)) == settings


# config/train_shakespeare_char.py and train.py of nanoGPT, with the flags for a CPU in its README.
NANOGPT_CPU = dict(n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, dropout=0.0, max_iters=2000)


def test_of_two_presets_the_last_counts():
    """The first one's values were left where the last one has none of its own."""
    twice = parse_flags(["--preset", "tiny", "--preset", "plain", "--device", "cpu"])[0]
    assert vars(twice) == vars(recipe(preset="plain"))


@pytest.mark.parametrize("flags, warmup", [("--steps 20", 2), ("--steps 20 --warmup 15", 15), ("--steps 25", 24)])
def test_a_run_of_fewer_steps_than_its_warm_up_gets_a_shorter_one(flags, warmup):
    assert parse_flags(["--preset", "plain", *flags.split()])[0].warmup == warmup


def test_the_reference_is_nanogpts_to_the_letter():
    s = parse_flags(FLAGS.split())[0]
    names = dict(n_layer="num_layers", n_head="num_heads", n_embd="embed_dim", block_size="max_seq", max_iters="steps")
    assert {name: getattr(s, names.get(name, name)) for name in NANOGPT_CPU} == NANOGPT_CPU
    # one dropout, no biases, a tied head, nn.GELU(), GPT-2's first weights
    assert s.attention_dropout == s.dropout and (s.bias, s.tie_embeddings, s.gelu) == (False, True, "exact")
    assert s.init == "normal" and s.windows == "random" and s.grad_accum == 1 and s.dtype == "float32"
    assert s.ema_decay == 0 and s.patience is None and s.lora_rank is None and s.minutes is None  # not in nanoGPT
    assert (s.grad_clip, s.eval_every, s.lr, s.warmup, s.schedule, s.cooldown) == (1.0, 250, 1e-3, 100, "cosine", 1.0)
    (adamw,) = make_optimizers(TinyGPT(tiny_config(bias=s.bias, tie_embeddings=s.tie_embeddings)), s)
    for group, decay in zip(adamw.param_groups, (0.1, 0), strict=True):
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.99), 1e-8, decay)


CHOICES = {"init": "sinusoid", "windows": "random", "attention_dropout": 0.5, "dropout": 0.5}
CHOICES |= {"optimizer": "adamw", "muon_lr": 0.1, "muon_momentum": 0.5, "weight_decay": 9.0, "lr": 0.1, "warmup": 4}
CHOICES |= {"schedule": "cosine", "cooldown": 0.5, "grad_clip": 0.01, "dtype": "bfloat16", "seed": 1, "gelu": "tanh"}
CHOICES |= {"num_heads": 4}


def weights_after_three_steps(**changes) -> torch.Tensor:
    plain = {"data": "synthetic", "dtype": "float32", "steps": 8, "warmup": 0, **SHAPE}
    run = new_run(*flags_of(**{**plain, **changes}))
    for _ in range(3):
        train_step(run, run.model)
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


@pytest.fixture(scope="module")
def usual_weights() -> torch.Tensor:
    return weights_after_three_steps()


def test_the_same_choices_train_the_same_weights(usual_weights):
    assert torch.equal(weights_after_three_steps(), usual_weights)


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_of_the_recipe_reaches_the_training(name, usual_weights):
    assert not torch.equal(weights_after_three_steps(**{name: CHOICES[name]}), usual_weights)


@pytest.mark.slow
@pytest.mark.parametrize("preset, steps, seeds", [("tiny", 60, 6), ("small", 50, 2)])
def test_no_seed_diverges(preset, steps, seeds):
    """Learning rates at their highest, whatever the seed: the loss falls, never below the floor, in a small spread."""
    losses = []
    for seed in range(seeds):
        run = new_run(*flags_of(preset=preset, data="synthetic", seed=seed))
        for _ in range(steps):
            train_step(run, run.model)
        losses.append(evaluate(run))
        assert run.corpus.floor < losses[-1]
    assert max(losses) < 2.0 and max(losses) - min(losses) < 0.3, losses


# --- Optimizers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_orthogonalize_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    """By algebra: for m = u s v', the result is u s' v', so u' r v is diagonal, with s' on it."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for m, result in zip(matrices, orthogonalize(matrices), strict=True):
        u, before, vt = torch.linalg.svd(m, full_matrices=False)
        core = u.T @ result @ vt.T
        assert (core - core.diag().diag()).abs().max() < 0.1
        assert before.max() / before.min() > 2
        assert core.diag().max() < 1.3 and core.diag().min() > 0.3


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16)])
def test_muon_equals_pytorchs_on_single_matrices(shape):
    """torch.optim.Muon is the oracle: the same momentum and iteration, then every row of the update has length lr."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs, expected = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone()), start.clone()
    own = Muon([ours], lr=0.1, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.0, nesterov=True)
    for _ in range(3):
        gradient, before = torch.randn(shape), theirs.detach().clone()
        for parameter, optimizer in ((ours, own), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
        change = before - theirs.detach()
        expected = expected * (1 - 0.1 * 0.1) - 0.1 * change / change.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours.detach(), expected, rtol=1e-2, atol=1e-2)
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


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer_and_only_matrices_decay(optimizer, tie_embeddings):
    model = TinyGPT(tiny_config(tie_embeddings=tie_embeddings))
    optimizers = make_optimizers(model, recipe(optimizer=optimizer, weight_decay=0.5))
    groups = [group for o in optimizers for group in o.param_groups]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = model.parameters() if optimizer == "adamw" else model.blocks.parameters()
    assert decaying == {id(p) for p in matrices if p.ndim >= 2}
    assert [type(o) for o in optimizers] == ([torch.optim.AdamW, Muon] if optimizer == "muon" else [torch.optim.AdamW])


@pytest.mark.parametrize(
    ("arguments", "rate", "expected"),
    [
        ([], 0.02, "tiny"),
        ([], 0.2, "mini"),
        ([], 1.0, "small"),
        ([], 7.0, "best"),
        (["--minutes", "0.5"], 0.2, "tiny"),
        (["--minutes", "100"], 0.05, "small"),  # time enough
        (["--steps", "7"], 0.05, "small"),  # the number of steps says nothing about the time
        (["--resume"], 0.05, "plain"),  # then the saved settings count
        (["--init-from", "base.pth"], 0.05, "tune"),
        (["--init-from", "base.pth", "--lora-rank", "2"], 0.05, "lora"),
        *(([flag, "96"], 0.05, "plain") for flag in ("--embed-dim", "--num-heads", "--num-layers")),
        (["--data", "long.txt"], 0.2, "mini"),
        (["--data", "long.txt", "short.txt"], 0.2, "mini"),
        (["--data", "short.txt"], 5.0, "short"),
        (["--data", "short.txt"], 0.15, "brief"),  # no time to read it often enough
        (["--data", "short.txt"], 0.05, "tiny"),
    ],
)
def test_the_network_fits_the_time_and_the_text(monkeypatch, arguments, rate, expected):
    """But not as one of several processes, which must agree and might measure different speeds."""
    Path("long.txt").write_bytes(b"x" * SHORT_TEXT)
    Path("short.txt").write_bytes("é".encode() * (SHORT_TEXT - 1))  # characters count, not bytes
    monkeypatch.setattr("recipe.product_rate", lambda *_: rate)
    assert parse_flags(["--device", "cpu", *arguments])[0].preset == expected
    monkeypatch.setenv("RANK", "0")
    assert parse_flags(["--device", "cpu", *arguments])[0].preset in ("plain", "base", "short", "small", "tune", "lora")


def test_a_short_text_gets_its_own_recipe(tmp_path, output_of, monkeypatch):
    """A text of 40 kB was given to `mini` for five minutes, which learned it by heart: 2.26, where `tiny` had 1.93."""
    monkeypatch.setattr("training.plan.MIN_TOKENS", 1)  # to be fast
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (tmp_path / "short.txt", folder / "a.txt"):
        path.write_text("a short text of one's own\n" * 120)
    for data in ("short.txt", "folder"):
        assert parse_flags(["--data", str(tmp_path / data)])[0].preset == "short"
    output = output_of("main.py", "--data", "short.txt", "--device", "cpu", "--dtype", "float32", "--out", "a.pth")
    steps = math.ceil(10 * len("a short text of one's own\n" * 120) * 0.9 / (32 * 64))
    assert "short, for a short text: steps" in output and "at most 10 times through the text" in output
    assert f"{steps} steps take" in output and f"at step {steps}" in output
    state = read_checkpoint(tmp_path / "a.last.pth", TRAINING)[0]
    assert (state["settings"]["steps"], state["training"]["step"]) == (steps, steps)
    output_of("main.py", "--resume", "--steps", steps + 2, "--out", "a.pth")  # who asks for more gets it
    flags = ["--preset", "short", "--data", "short.txt", "--device", "cpu", "--dtype", "float32", "--epochs", 1]
    assert f"recipe   short: {math.ceil(steps / 10)} steps" in output_of("main.py", *flags, "--out", "b.pth")
    assert "recipe   short: 3 steps" in output_of("main.py", *flags[:-2], "--steps", 3, "--out", "c.pth")
