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
from conftest import ROOT, SMALL_NETWORK, assert_one_error_line, environment
from formats.checkpoint import TRAINING, load_checkpoint
from recipe import TrainSettings
from training import run as training_run

OUT = "checkpoints/tiny_decoder.pth"
SHORT = ["--data", "synthetic", *SMALL_NETWORK, "--dropout", "0.2", "--average", "0.8", "--eval-every", "6"]


def state_of(folder) -> dict:
    """Every tensor and number of a training state, flat, for a comparison to the last bit."""
    loaded = load_checkpoint(folder / "checkpoints/tiny_decoder.last.pth", TRAINING)
    flat = {f"weights.{name}": tensor for name, tensor in loaded.model.state_dict().items()}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}", item)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                walk(f"{prefix}.{i}", item)
        elif not prefix.endswith(("seconds", "stop_at", "resume")):
            flat[prefix] = value

    walk("training", loaded.training)
    return flat


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        assert same, name


def metrics_of(folder) -> list[dict]:
    lines = (folder / "checkpoints/tiny_decoder.metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on the synthetic corpus: (folder, stdout)."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *SHORT, "--steps", "12"],
        cwd=folder, env=environment(), capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
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
    sizes = dict(max_seq=16, embed_dim=32, num_heads=2, num_layers=1, batch_size=32, steps=150, dtype="float32")
    settings = TrainSettings(data="synthetic", device="cpu", lr=0.01, **sizes)
    losses = {}
    for leaking in (False, True):
        run = training_run.start_run(settings, torch.device("cpu"))
        if leaking:
            run.model.causal_mask.zero_()
        while run.step < settings.steps:
            main.train_step(run)
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


def test_the_best_model_can_be_sampled(trained, command):
    folder, _ = trained
    runs = [command("generate.py", "--seed", 1, "--max-new-tokens", 60, cwd=folder) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) >= 60
    other = command("generate.py", "--seed", 2, "--max-new-tokens", 60, cwd=folder)
    assert other.stdout != runs[0].stdout


def test_an_unknown_character_in_the_prompt_warns_once_and_works(trained, command):
    folder, _ = trained
    done = command("generate.py", "--prompt", "KING é é", "--max-new-tokens", 5, cwd=folder)
    assert done.stdout.startswith("KING é é")
    assert done.stderr.count("warning") == 1 and "U+00E9" in done.stderr


@pytest.mark.parametrize("part", [4, 6])
def test_stop_and_resume_equals_one_go_to_the_last_bit(trained, command, tmp_path, part):
    """N steps, stop, M more in a new process, with dropout on; stopping at an evaluation and between two."""
    folder, _ = trained
    first = command("main.py", *SHORT, "--steps", 12, "--stop-at", part)
    assert f"saved at step {part} of 12; go on with: python main.py --resume" in first.stdout
    command("main.py", "--resume")
    assert_same_bits(state_of(tmp_path), state_of(folder))
    for resumed, whole in zip(metrics_of(tmp_path), metrics_of(folder), strict=True):
        for key in ("step", "val_loss", "lr"):
            assert resumed[key] == whole[key]
    assert torch.load(tmp_path / OUT, weights_only=True)["origin"]["step"] == 12


def gradients(grad_accum: int) -> dict[str, torch.Tensor]:
    """The clipped gradients of a first step: without optimizers, nothing consumes them."""
    sizes = dict(max_seq=16, embed_dim=16, num_heads=2, num_layers=1, batch_size=8)
    settings = TrainSettings(data="synthetic", dtype="float32", device="cpu", grad_accum=grad_accum, **sizes)
    run = training_run.start_run(settings, torch.device("cpu"))
    run.optimizers = []
    main.train_step(run)
    return {name: parameter.grad for name, parameter in run.model.named_parameters()}


def test_grad_accum_gives_the_same_gradients():
    whole, parts = gradients(1), gradients(4)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_resumed_run_is_bit_exact(trained, command, tmp_path, signum, code):
    folder, _ = trained
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *SHORT, "--steps", "12"],
        cwd=tmp_path, env=environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step"):
            process.send_signal(signum)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "python main.py --resume" in errors and "Traceback" not in errors
    command("main.py", "--resume")
    assert_same_bits(state_of(tmp_path), state_of(folder))


def test_an_earlier_run_is_kept(in_process, tmp_path):
    in_process("main.py", *SHORT, "--steps", 2)
    before = (tmp_path / OUT).read_bytes()
    _, output, _ = in_process("main.py", *SHORT, "--steps", 2, "--seed", 1)
    assert "is kept as checkpoints/tiny_decoder.1.pth" in output
    assert (tmp_path / "checkpoints/tiny_decoder.1.pth").read_bytes() == before
    assert (tmp_path / OUT).read_bytes() != before


def test_divergence_stops_before_the_update(in_process, tmp_path):
    """A rate this large makes the weights overflow after a step or two; the last saved state must stay."""
    in_process("main.py", *SHORT, "--steps", 2)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    code, _, errors = in_process(
        "main.py", *SHORT, "--steps", 50, "--optimizer", "adamw", "--lr", 100, "--clip", 1e30, "--weight-decay", 100,
        "--out", "checkpoints/wild.pth", "--eval-every", 1000, "--dtype", "float32",
    )  # fmt: skip
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
    assert_one_error_line(errors, "complete at step 4", "--steps")
    code, output, _ = in_process("main.py", "--resume", "--steps", 6, "--decay", 0.5)
    assert code == 0 and "step     6" in output


def test_rising_validation_is_said_and_the_best_weights_are_kept(in_process, tmp_path):
    """300 random characters can only be learned by heart; what is saved is the model from before that."""
    (tmp_path / "short.txt").write_text("".join(random.Random(0).choices("abcdefgh", k=300)))
    code, output, _ = in_process(
        "main.py", "--data", "short.txt", *SMALL_NETWORK, "--steps", 200, "--eval-every", 20, "--lr", 0.01
    )
    assert code == 0 and "the model learns its text by heart" in output
    losses = [line["val_loss"] for line in metrics_of(tmp_path)]
    assert losses[-1] > min(losses) + 0.02
    assert torch.load(tmp_path / OUT, weights_only=True)["origin"]["val_loss"] == min(losses)
