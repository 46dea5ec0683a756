"""--minutes: how many steps fit; --patience; what a run says about its length."""

import re
from types import SimpleNamespace

import pytest

from helpers import SMALL_NETWORK, new_run, read_metrics, written
from recipe import parse_flags
from support.command import UserError
from training.distributed import ALONE
from training.plan import plan_steps
from training.state import TrainState

FLAGS = ["--data", "t.txt", *SMALL_NETWORK, "--warmup", 5, "--out"]


@pytest.fixture
def train(output_of, tmp_path):
    written(tmp_path / "t.txt", "to be or not to be\n" * 200)
    return lambda *flags, code=0: output_of("main.py", *flags, code=code)


def test_a_run_that_asks_for_nothing_plans_five_minutes():
    assert parse_flags([])[0].minutes == 5
    for asked in (["--steps", "7"], ["--preset", "small"], ["--resume"]):
        assert parse_flags(asked)[0].minutes is None
    assert [parse_flags(asked)[0].epochs for asked in (["--num-heads", "6"], ["--epochs", "3"])] == [35, 3]
    assert [parse_flags(["--preset", name, "--minutes", "1"])[0].epochs for name in ("mini", "small")] == [0, 16]
    with pytest.raises(UserError, match="--minutes and --steps"):
        parse_flags(["--steps", "7", "--minutes", "2"])


@pytest.mark.parametrize(
    "flags, seconds, evaluation, steps, eval_every, words",
    [
        # 300 s, less 10 s so far and 10 evaluations of 4 s: 250 s, 500 steps after the warm-up's 24
        ([], 0.5, 4.0, 524, 53, ["524 steps take about 5 minutes", "--preset plain --steps 524 --eval-every 53"]),
        (["--minutes", "10", "--eval-every", "120"], 0.125, 0.0, 4744, 120, ["4,744 steps", "--eval-every 120"]),
        (["--minutes", "10", "--eval-every", "8"], 0.125, 1.0, 2384, 8, ["2,384 steps"]),  # 1/8 s each
        (["--minutes", "1"], 0.1, 5.0, 424, 212, ["424 steps take about 60 s,"]),  # 2 evaluations: a fifth of 50 s
        (["--minutes", "1", "--warmup", "9"], 0.5, 0.0, 109, 11, ["--warmup 9 repeats this run"]),
        (["--minutes", "0.1"], 0.5, 0.0, 25, 25, ["warm-up and evaluation take longer", "more --minutes"]),
    ],
)
def test_as_many_steps_as_fit(capsys, flags, seconds, evaluation, steps, eval_every, words):
    """The second half of the warm-up's steps counts: the first ones also load code."""
    settings = parse_flags(["--num-layers", "4", *flags])[0]
    run = SimpleNamespace(settings=settings, state=TrainState(step=settings.warmup), dist=ALONE)
    plan_steps(run, [9.0] * 12 + [seconds] * 12, evaluation_seconds=evaluation, elapsed=10.0)
    assert (run.settings.steps, run.settings.eval_every, run.state.planned) == (steps, eval_every, True)
    printed = capsys.readouterr().out
    assert all(word in printed for word in words), printed


def test_a_short_text_has_a_short_warmup_and_several_evaluations(tmp_path):
    """Fine-tuning on 8 kB made 11 steps, all of them within a warm-up of 24."""
    data = ["--data", written(tmp_path / "t.txt", "to be or not to be\n" * 420), "--max-seq", 16, "--preset", "small"]
    settings = new_run(*data, "--epochs", 9, "--batch-size", 32).settings
    assert (settings.steps, settings.warmup, settings.eval_every) == (127, 12, 12)
    settings = new_run(*data, "--epochs", 9, "--warmup", 30, "--eval-every", 50).settings
    assert (settings.steps, settings.warmup, settings.eval_every) == (253, 30, 50)
    settings = new_run(*data[:-1], "short", "--batch-size", 125).settings  # ten times through are 36 steps
    assert (settings.steps, settings.eval_every, settings.epochs) == (150, 15, 0)


def test_the_number_of_the_plan_repeats_the_run(train, tmp_path):
    out = train(*FLAGS, "a.pth", "--minutes", 0.02, "--eval-every", 10)
    repeat = re.search(r"\((--preset .*) repeats this run", out)[1].split()
    train(*FLAGS, "b.pth", *repeat)
    first, second = (read_metrics(tmp_path / f"{name}.metrics.jsonl") for name in "ab")
    assert [line["val_loss"] for line in first] == [line["val_loss"] for line in second]


def test_a_resume_plans_if_the_run_has_not(train):
    train(*FLAGS, "a.pth", "--minutes", 0.03, "--stop-at", 2)
    assert "(--preset plain --steps " in train("--resume", "--out", "a.pth")


def test_a_run_stopped_before_its_plan_and_given_steps_is_evaluated_as_usual(train, tmp_path):
    """It was saved at its last step only: the plan, which was dropped, would have said how often to evaluate."""
    train(*FLAGS, "a.pth", "--minutes", 1, "--stop-at", 2)
    train("--resume", "--steps", 130, "--out", "a.pth")
    assert [line["step"] for line in read_metrics(tmp_path / "a.metrics.jsonl")] == [120, 130]


def test_a_finished_run_goes_on_for_so_many_minutes(train, tmp_path):
    train(*FLAGS, "a.pth", "--steps", 9, "--eval-every", 3)
    longer = train("--resume", "--minutes", 0.03, "--out", "a.pth")
    steps = int(re.search(r"([\d,]+) steps take", longer)[1].replace(",", ""))
    assert "resuming at step 9" in longer and "--minutes 0.03 allows" in longer and "repeats this run" not in longer
    evaluations = read_metrics(tmp_path / "a.metrics.jsonl")
    assert steps > 9 and evaluations[-1]["step"] == steps and 3 < len(evaluations) <= 3 + 11  # not every 3
    for flags in (["--warmup", 0], []):  # no run could be resumed that had been planned with less than 4 steps of it
        train("--resume", "--minutes", 0.03, *flags, "--out", "a.pth")
    tuned = train("--init-from", "a.pth", "--data", "t.txt", "--minutes", 0.03, "--epochs", 999, "--out", "b.pth")
    assert "(--preset tune --steps" in tuned and "repeats this run" in tuned


def test_patience_ends_a_run(train):
    flags = ["--steps", 50, "--eval-every", 1, "--lr", 50, "--muon-lr", 50, "--grad-clip", 1e-9, "--patience", 2]
    assert "2 evaluations without a new best" in train(*FLAGS, "a.pth", *flags)
    again = train("--resume", "--out", "a.pth")  # made one step more than a run that was not cut there
    assert "2 evaluations without a new best" in again and "\nstep" not in again and ", for this text" not in again
    assert "\nstep" in train("--resume", "--steps", 60, "--out", "a.pth")  # more was asked for
