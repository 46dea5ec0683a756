"""Training end to end, as a user runs it: the commands, bit-exact resume, the floor, failures at an evaluation."""

import itertools
import random
import re
import shlex
from functools import partial

import numpy as np
import pytest
import torch

import main
from formats.checkpoint import MODEL, TRAINING, load_model, read_checkpoint
from helpers import ROOT, SMALL_NETWORK, assert_same_state, new_run, read_metrics, written
from recipe import parse_flags
from support.command import StopSignal
from training.run import Run
from training.save import where_kept

SHORT = ["--data", "synthetic", *SMALL_NETWORK, "--dropout", "0.2", "--ema-decay", "0.8", "--distill", "0.5"]
SHORT += ["--warmup", "4", "--eval-every", "6", "--out", "a.pth"]
RESUME = ["--resume", "--out", "a.pth"]


def fresh_run(*flags: object) -> Run:
    """A run in this process, at step 0."""
    return new_run("--data", "synthetic", "--device", "cpu", "--dtype", "float32", *SMALL_NETWORK, *flags)


def metrics_without_clocks(path) -> list[dict]:
    clocks = ("train_seconds", "tokens_per_second")
    return [{name: value for name, value in line.items() if name not in clocks} for line in read_metrics(path)]


@pytest.fixture
def whole(output_of, tmp_path_factory, monkeypatch):
    """A short run on the synthetic corpus in a folder of its own: (folder, stdout)."""
    folder = tmp_path_factory.mktemp("whole")
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        return folder, output_of("main.py", *SHORT, "--steps", 12)


def test_a_run_says_what_it_does_and_leaves_its_files(whole):
    folder, output = whole
    for word in ("synthetic", "parameters", "floor", "threads", "val ", "python generate.py"):
        assert word in output
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")
    assert names == ["a.last.pth", "a.metrics.jsonl", "a.previous.pth", "a.pth", "a.story.jsonl"]
    lines = read_metrics(folder / "a.metrics.jsonl")
    assert [(line["step"], line["tokens"]) for line in lines] == [(6, 6 * 4 * 16), (12, 12 * 4 * 16)]
    assert {"train_seconds", "train_loss", "lr", "tokens_per_second"} <= lines[0].keys()
    assert lines[1]["val_loss"] < lines[0]["val_loss"] < np.log(60)


@pytest.mark.parametrize("stops", [[4], [6], [1, 2, 3, 7]])
def test_stop_and_resume_equals_one_go_to_the_last_bit(whole, output_of, command, tmp_path, stops):
    """The last part in a new process, with dropout on; stopped at an evaluation, between two, and again and again. The
    training loss is the mean since the last evaluation, however often the run was stopped in between."""
    folder, _ = whole
    output = output_of("main.py", *SHORT, "--steps", 12, "--stop-at", stops[0])
    assert f"saved at step {stops[0]} of 12; continue with: python main.py --resume" in output
    for stop in stops[1:]:
        output_of("main.py", *RESUME, "--stop-at", stop)
    script = re.search(r"sample from it with: python (\S+) ", command("main.py", *RESUME).stdout)[1]
    assert (tmp_path / script).samefile(ROOT / "generate.py")  # from whatever folder
    assert_same_state(tmp_path / "a.last.pth", folder / "a.last.pth")
    assert metrics_without_clocks(tmp_path / "a.metrics.jsonl") == metrics_without_clocks(folder / "a.metrics.jsonl")
    assert (tmp_path / "a.story.jsonl").read_bytes() == (folder / "a.story.jsonl").read_bytes()
    header, weights = read_checkpoint(tmp_path / "a.pth", MODEL)
    _, expected = read_checkpoint(folder / "a.pth", MODEL)
    assert header["origin"]["step"] == 12
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_no_run_gets_below_the_floor_and_a_leaking_one_does():
    """The end-to-end check of mask, shift and split: with the mask taken away, the model reads the answers."""
    losses = {}
    for leaking in (False, True):
        run = fresh_run("--embed-dim", 32, "--batch-size", 32, "--steps", 150, "--lr", 0.01)
        if leaking:
            run.model.causal_mask.zero_()
        while run.state.step < run.settings.steps:
            main.train_step(run, run.model)
        losses[leaking] = main.evaluate(run)
    assert losses[True] < run.corpus.floor < losses[False]


def test_grad_accum_gives_the_same_gradients():
    gradients = []
    for parts in (1, 4):
        run = fresh_run("--batch-size", 8, "--grad-accum", parts, "--steps", 9, "--ema-decay", 0.5, "--distill", 0.5)
        run.settings.warmup, run.state.step = 0, 5  # past the warm-up: the teacher counts
        main.compute_gradients(run, run.model)
        gradients.append([p.grad for p in run.model.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-7)


def test_float16_resumes_exactly_and_skips_steps_that_overflow(output_of, tmp_path, monkeypatch):
    """A free T4 has no fast products but these. The first steps overflow, with a factor of 2^20; the rest is saved."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**20)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    flags = [*SHORT, "--dtype", "float16", "--steps", 12]
    said = output_of("main.py", *flags)
    output_of("main.py", *flags, "--out", "b.pth", "--stop-at", 5)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(scaler, init_scale=4.0))  # the saved factor counts
    output_of("main.py", "--resume", "--out", "b.pth")
    assert_same_state(tmp_path / "b.last.pth", tmp_path / "a.last.pth")
    state = read_checkpoint(tmp_path / "a.last.pth", TRAINING)[0]["training"]
    assert state["skipped"] in (1, 2, 3) and state["scale_steps"] > 0 and f", {state['skipped']} step" in said
    assert state["loss_scale"] == 2.0 ** (20 - state["skipped"])


def test_a_run_resumed_in_float16_begins_with_the_usual_factor(output_of, tmp_path):
    output_of("main.py", *SHORT, "--dtype", "float32", "--steps", 12, "--stop-at", 5)
    output_of("main.py", *RESUME, "--dtype", "float16")
    assert read_checkpoint(tmp_path / "a.last.pth", TRAINING)[0]["training"]["loss_scale"] == 2.0**16


def test_a_step_that_overflows_changes_nothing_and_without_end_it_is_said():
    run = fresh_run("--dtype", "float16", "--ema-decay", 0.5)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = [p.clone() for p in (*run.model.parameters(), *run.average.module.parameters())]
    main.train_step(run, run.model)
    after = [*run.model.parameters(), *run.average.module.parameters()]
    assert all(map(torch.equal, before, after))
    assert (run.state.step, run.state.skipped, run.scaler.get_scale()) == (1, 1, 2.0**99)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with torch.no_grad():
        run.model.head.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        main.train_step(run, run.model)


@pytest.mark.parametrize("tuning", ["", "--init-from base.pth", "--init-from base.pth --lora-rank 8"])
def test_rising_validation_is_answered_with_a_command_that_runs(output_of, tmp_path, tuning):
    """Soft targets got as few steps as the best model without (of 12 kB, 2.07, not 1.94), a resumed run no command."""
    written(tmp_path / "short.txt", "".join(random.Random(0).choices("abcdefgh", k=300)))
    output_of("main.py", "--data", "synthetic", *SMALL_NETWORK, "--steps", 20, "--out", "base.pth")
    flags = ["--data", "short.txt", "--steps", 300, "--eval-every", 20, "--lr", 0.02, "--no-compile", "--out", "a.pth"]
    for words in ([*(tuning.split() or SMALL_NETWORK), *flags], ["--resume", "--steps", 320, "--out", "a.pth"]):
        advice = shlex.split(re.search("the model may overfit.*: python (main.py .*)", output_of("main.py", *words))[1])
        again, best_step = parse_flags(advice[1:])[0], read_checkpoint(tmp_path / "a.pth")[0]["origin"]["step"]
        assert (again.steps, again.distill) == (best_step * (1 if again.preset == "tune" else 2), 0.7)
        assert (again.lr, again.compile, again.data, again.out) == (0.02, False, ["short.txt"], "a.pth")
        assert again.init_from == ("base.pth" if tuning else None) and advice.count("--steps") == 1
    assert f"recipe   {again.preset}: {again.steps} steps" in output_of(*advice)


def test_a_failure_at_an_evaluation_loses_no_step(output_of, tmp_path, monkeypatch):
    """3,000 steps were lost, once, when a package for the report of the first evaluation was missing. Whatever fails,
    a resumed run makes up for it, be it at the last step. An error within a step loses none before it."""
    output_of("main.py", *SHORT, "--steps", 12)
    expected, story = metrics_without_clocks(tmp_path / "a.metrics.jsonl"), (tmp_path / "a.story.jsonl").read_bytes()
    stages = ("evaluate", "save_best", "log_metrics", "log_story", "sample_text", "print_step")
    for name, failing_step in [*itertools.product(stages, (6, 12)), ("compute_gradients", 8)]:
        out = f"{name}{failing_step}"
        run = new_run(*SHORT, "--out", f"{out}.pth", "--steps", 12)
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            works = getattr(main, name)
            patch.setattr(main, name, lambda *a, f=works, r=run, s=failing_step: 1 / (s - r.state.step) and f(*a))
            main.train(run, run.model, StopSignal())
        assert read_checkpoint(tmp_path / f"{out}.last.pth", TRAINING)[0]["training"]["step"] == failing_step
        nothing_left = (name, failing_step) == ("print_step", 12)
        assert ("--resume" in where_kept(run)) != nothing_left
        output_of("main.py", "--resume", "--out", f"{out}.pth", code=2 if nothing_left else 0)
        weights = [load_model(tmp_path / f"{one}.pth").model.state_dict() for one in ("a", out)]
        assert all(map(torch.equal, *(w.values() for w in weights)))
        assert metrics_without_clocks(tmp_path / f"{out}.metrics.jsonl") == expected
        assert (tmp_path / f"{out}.story.jsonl").read_bytes() == story


def test_a_run_that_learns_nothing_says_so(output_of):
    """With --lr 50, a loss of 207,389 was announced as the best."""
    output = output_of("main.py", *SHORT, "--steps", 6, "--lr", 50, "--muon-lr", 50)
    assert "guessing has a lower loss" in output and "smaller --lr" in output


def test_training_teacher_and_evaluation_are_compiled(monkeypatch):
    """With --compile, by torch.compile itself, here with the backend that compiles to what PyTorch runs anyway."""
    compiled, compile_it = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or compile_it(model, backend="eager"))
    run = fresh_run("--compile", "--steps", 2, "--ema-decay", 0.9, "--distill", 0.5)
    main.train(run, run.compiled(run.model), StopSignal())
    assert {id(model) for model in compiled} == {id(run.model), id(run.average.module)}
    plain = fresh_run("--no-compile", "--steps", 2, "--ema-decay", 0.9, "--distill", 0.5)
    main.train(plain, plain.model, StopSignal())
    assert run.state.best_loss == pytest.approx(plain.state.best_loss, rel=1e-5)
