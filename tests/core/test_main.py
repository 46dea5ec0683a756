"""Training end to end, as a user runs it: the commands, bit-exact resume, signals, what is refused."""

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import main
from conftest import environment
from formats.checkpoint import MODEL, load_model, read_checkpoint
from helpers import ROOT, SMALL_NETWORK, assert_one_error_line, assert_same_state, new_run
from support.command import UserError
from training.run import Run

OUT = "checkpoints/tiny_decoder.pth"
LAST = "checkpoints/tiny_decoder.last.pth"
SHORT = ["--data", "synthetic", *SMALL_NETWORK, "--dropout", "0.2", "--ema-decay", "0.8", "--eval-every", "6"]


def metrics_of(folder) -> list[dict]:
    lines = (folder / "checkpoints/tiny_decoder.metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def fresh_run(*flags: object) -> Run:
    """A run in this process, at step 0."""
    return new_run("--data", "synthetic", "--device", "cpu", "--dtype", "float32", *SMALL_NETWORK, *flags)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on the synthetic corpus: (folder, stdout)."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *SHORT, "--steps", "12"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_says_what_it_does_and_leaves_its_files(trained):
    folder, output = trained
    for words in ("synthetic", "parameters", "floor", "threads", "val ", "python generate.py"):
        assert words in output
    names = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.suffix != ".lock")
    assert names == [f"tiny_decoder.{end}" for end in ("last.pth", "metrics.jsonl", "previous.pth", "pth")]


def test_no_honest_run_gets_below_the_floor_and_a_leaking_one_does():
    """The end-to-end check of mask, shift and split: with the mask taken away, the model reads the answers."""
    sizes = ["--embed-dim", 32, "--batch-size", 32, "--steps", 150, "--lr", 0.01]
    losses = {}
    for leaking in (False, True):
        run = fresh_run(*sizes)
        if leaking:
            run.model.causal_mask.zero_()
        while run.state.step < run.settings.steps:
            main.train_step(run, run.model)
        losses[leaking] = main.evaluate(run)
    assert losses[True] < run.corpus.floor < losses[False]


def test_metrics_hold_a_line_per_evaluation(trained):
    folder, _ = trained
    lines = metrics_of(folder)
    assert [line["step"] for line in lines] == [6, 12]
    for line in lines:
        keys = {"step", "tokens", "train_seconds", "train_loss", "val_loss", "lr", "tokens_per_second"}
        assert keys <= line.keys()
        assert line["tokens"] == line["step"] * 4 * 16
    assert lines[1]["val_loss"] < lines[0]["val_loss"] < np.log(60)


def test_the_best_model_can_be_sampled(trained, in_process, monkeypatch):
    monkeypatch.chdir(trained[0])
    flags = ["--max-new-tokens", 60, "--seed"]
    texts = [in_process("generate.py", *flags, seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) >= 60


def test_an_unknown_character_in_the_prompt_warns_once_and_works(trained, in_process, monkeypatch):
    monkeypatch.chdir(trained[0])
    code, output, errors = in_process("generate.py", "--prompt", "KING é é", "--max-new-tokens", 5)
    assert code == 0 and output.startswith("KING é é")
    assert errors.count("warning") == 1 and "U+00E9" in errors


@pytest.mark.parametrize("part", [4, 6])
def test_stop_and_resume_equals_one_go_to_the_last_bit(trained, in_process, command, tmp_path, part):
    """N steps, stop, M more in a new process, with dropout on; stopping at an evaluation and between two."""
    folder, _ = trained
    _, output, _ = in_process("main.py", *SHORT, "--steps", 12, "--stop-at", part)
    assert f"saved at step {part} of 12; continue with: python main.py --resume" in output
    command("main.py", "--resume")
    assert_same_state(tmp_path / LAST, folder / LAST)
    assert_same_metrics(tmp_path, folder)
    header, weights = read_checkpoint(tmp_path / OUT, MODEL)
    _, expected = read_checkpoint(folder / OUT, MODEL)
    assert header["origin"]["step"] == 12
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def assert_same_metrics(a, b) -> None:
    """Two runs report the same, but for the time they took."""
    clocks = ("train_seconds", "tokens_per_second")
    lines, expected = (
        [{name: value for name, value in line.items() if name not in clocks} for line in metrics_of(folder)]
        for folder in (a, b)
    )
    assert lines == expected


def test_resumes_between_evaluations_report_the_loss_of_all_steps(in_process, tmp_path):
    """The training loss is the mean since the last evaluation, however often the run was stopped in between."""
    flags = ["--data", "synthetic", *SMALL_NETWORK, "--eval-every", 4, "--steps", 8]
    in_process("main.py", *flags, "--out", "whole.pth")
    in_process("main.py", *flags, "--out", "parts.pth", "--stop-at", 1)
    for step in (2, 3, 5):
        assert in_process("main.py", "--resume", "--out", "parts.pth", "--stop-at", step)[0] == 0
    assert in_process("main.py", "--resume", "--out", "parts.pth")[0] == 0
    losses = []
    for name in ("whole", "parts"):
        lines = (tmp_path / f"{name}.metrics.jsonl").read_text().splitlines()
        losses.append([(line["step"], line["train_loss"]) for line in map(json.loads, lines)])
        assert all(json.loads(line)["tokens_per_second"] > 0 for line in lines)
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == [4, 8]


def gradients(grad_accum: int) -> dict[str, torch.Tensor]:
    """The clipped gradients of a first step: without optimizers, nothing consumes them."""
    run = fresh_run("--batch-size", 8, "--grad-accum", grad_accum)
    run.optimizers = []
    main.train_step(run, run.model)
    return {name: parameter.grad for name, parameter in run.model.named_parameters()}


def test_grad_accum_gives_the_same_gradients():
    whole, parts = gradients(1), gradients(4)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_saves_and_the_resumed_run_is_bit_exact(trained, in_process, tmp_path):
    """From outside, in a real process; tests/robustness/test_signals.py has the other cases."""
    folder, _ = trained
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *SHORT, "--steps", "12"],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "python main.py --resume" in errors and "Traceback" not in errors
    assert in_process("main.py", "--resume")[0] == 0
    assert_same_state(tmp_path / LAST, folder / LAST)


def test_an_earlier_run_is_kept(in_process, tmp_path):
    in_process("main.py", *SHORT, "--steps", 2)
    before = (tmp_path / OUT).read_bytes()
    _, output, _ = in_process("main.py", *SHORT, "--steps", 2, "--seed", 1)
    assert "is kept as checkpoints/tiny_decoder.1.pth" in output
    assert (tmp_path / "checkpoints/tiny_decoder.1.pth").read_bytes() == before
    assert (tmp_path / OUT).read_bytes() != before


def test_divergence_stops_before_the_update(in_process, tmp_path):
    """A learning rate this large makes the weights overflow after a step or two; the last saved state must stay."""
    in_process("main.py", *SHORT, "--steps", 2)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    wild = ["--optimizer", "adamw", "--lr", 100, "--grad-clip", 1e30, "--weight-decay", 100, "--eval-every", 1000]
    wild += ["--dtype", "float32", "--out", "checkpoints/wild.pth"]
    code, _, errors = in_process("main.py", *SHORT, "--steps", 50, *wild)
    assert code == 3
    assert_one_error_line(errors, "step", "nothing was updated", "--lr")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data", "data/none.txt"], ["data/none.txt", "no such file"]),
        (["--steps", "0"], ["--steps", "at least 1"]),
        (["--steps", "ten"], ["--steps", "ten"]),
        (["--lr", "nan"], ["--lr", "finite"]),
        (["--dropout", "1"], ["--dropout", "less than 1"]),
        (["--preset", "huge"], ["--preset", "tiny"]),
        (["--num-heads", "5"], ["--embed-dim", "--num-heads 5"]),
        (["--batch-size", "10", "--grad-accum", "3"], ["--batch-size 10", "--grad-accum 3"]),
        (["--step", "5"], ["--step"]),
        (["--device", "abacus"], ["--device abacus"]),
        (["--out", "model.pt"], ["--out", ".pth"]),
        (["--data", "synthetic", "--max-seq", "16384", "--batch-size", "1", "--out", ""], ["--out", "empty"]),
    ],
)
def test_bad_flags_are_one_line_and_make_no_file(in_process, tmp_path, flags, words):
    code, _, errors = in_process("main.py", *flags)
    assert code == 2
    assert_one_error_line(errors, *words)
    assert not list(tmp_path.rglob("*.pth"))


def test_resume_without_a_run_and_against_it(in_process):
    code, _, errors = in_process("main.py", "--resume")
    assert code == 2
    assert_one_error_line(errors, "tiny_decoder.last.pth", "no such file")
    assert in_process("main.py", *SHORT, "--steps", 4, "--stop-at", 2)[0] == 0
    code, _, errors = in_process("main.py", "--resume", "--embed-dim", 32)
    assert code == 2
    assert_one_error_line(errors, "--embed-dim 32 contradicts", "16")
    assert in_process("main.py", "--resume")[0] == 0
    code, _, errors = in_process("main.py", "--resume")
    assert code == 2
    assert_one_error_line(errors, "has made 4 steps already", "--steps")
    code, output, _ = in_process("main.py", "--resume", "--steps", 6, "--cooldown", 0.5)
    assert code == 0 and "step     6" in output


def test_rising_validation_is_said_and_the_best_weights_are_kept(in_process, tmp_path):
    """300 random characters can only be learned by heart; what is saved is the model from before that."""
    (tmp_path / "short.txt").write_text("".join(random.Random(0).choices("abcdefgh", k=300)))
    code, output, _ = in_process(
        "main.py", "--data", "short.txt", *SMALL_NETWORK, "--steps", 200, "--eval-every", 20, "--lr", 0.01
    )
    assert code == 0 and "the model overfits" in output
    losses = [line["val_loss"] for line in metrics_of(tmp_path)]
    assert losses[-1] > min(losses) + 0.02
    assert load_model(tmp_path / OUT).origin["val_loss"] == min(losses)


# --- Whose mistake -----------------------------------------------------------------------------------------------


def test_a_bug_in_the_loop_keeps_its_traceback(in_process, monkeypatch):
    """A ValueError is a bug unless the one call that checks what a user gave has raised it."""

    def wrong(run, network):
        a, b = run.settings.steps, *()
        return a + b

    monkeypatch.setattr(main, "compute_gradients", wrong)
    with pytest.raises(ValueError, match="not enough values to unpack"):
        in_process("main.py", *SHORT, "--steps", 2)


def test_a_users_mistake_in_the_loop_is_one_line(in_process, monkeypatch):
    def refuse(run, network):
        raise UserError("this cannot be:\ngive another --flag")

    monkeypatch.setattr(main, "compute_gradients", refuse)
    code, _, errors = in_process("main.py", *SHORT, "--steps", 2)
    assert code == 2
    assert_one_error_line(errors, "this cannot be: give another --flag")
