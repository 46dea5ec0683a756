"""--minutes: how many steps fit; --patience; what a run says about its length and its losses."""

import json
import re
from types import SimpleNamespace

import pytest

from helpers import SMALL_NETWORK
from recipe import parse_flags
from support.command import UserError
from training.distributed import ALONE
from training.plan import in_minutes, plan_steps, two_digits
from training.report import plot
from training.state import TrainState


def planned(capsys, arguments, seconds, evaluation=0.0, step=24):
    """Plan a run whose steps and evaluations take so many seconds; returns it and what was printed."""
    settings, _ = parse_flags(arguments)
    run = SimpleNamespace(settings=settings, state=TrainState(step=step), dist=ALONE)
    plan_steps(run, [9.0] * 12 + [seconds] * 12, evaluation_seconds=evaluation, elapsed=10.0)
    return run, capsys.readouterr().out


def test_a_run_that_asks_for_nothing_plans_five_minutes():
    assert parse_flags([])[0].minutes == 5
    for asked in (["--steps", "7"], ["--preset", "small"], ["--resume"]):
        assert parse_flags(asked)[0].minutes is None
    with pytest.raises(UserError, match="--minutes and --steps"):
        parse_flags(["--steps", "7", "--minutes", "2"])


def test_fewer_steps_where_the_preset_does_not_fit(capsys):
    run, out = planned(capsys, [], 0.5, evaluation=4.0)
    # 300 s, less 10 s so far and 10 evaluations of 4 s: 250 s, 500 steps after the warm-up's 24, in two digits 520
    assert run.settings.steps == 520 and run.settings.eval_every == 52 and run.state.planned
    assert "520 steps take about 5 minutes" in out and "--preset small --steps 520 --eval-every 52 repeats" in out


def test_the_presets_steps_where_they_fit_and_more_if_minutes_are_asked_for(capsys):
    run, out = planned(capsys, [], 0.1)
    assert run.settings.steps == 1200 and run.settings.eval_every == 120 and "1,200 steps take about 3 minutes" in out
    run, out = planned(capsys, ["--minutes", "10", "--eval-every", "33"], 0.1)
    assert (
        run.settings.steps == 5900
        and run.settings.eval_every == 33
        and "5,900 steps" in out
        and "into 10 minutes" in out
    )


def test_the_number_that_was_found_repeats_the_run(in_process, tmp_path):
    (tmp_path / "t.txt").write_text("to be or not to be\n" * 200, encoding="utf-8")
    flags = ["--data", "t.txt", *SMALL_NETWORK, "--warmup", 5, "--out"]
    code, out, errors = in_process("main.py", *flags, "a.pth", "--minutes", 0.05, "--eval-every", 10)
    assert code == 0, errors
    found = re.search(r"\((--preset \w+ --steps \d+ --eval-every \d+) repeats this run", out)[1].split()
    code, *_ = in_process("main.py", *flags, "b.pth", *found)
    first, second = (
        [json.loads(line)["val_loss"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("a.metrics.jsonl", "b.metrics.jsonl")
    )
    assert code == 0 and first == second


def test_interrupted_before_the_plan_a_resume_measures_anew(in_process, tmp_path):
    (tmp_path / "t.txt").write_text("to be or not to be\n" * 200, encoding="utf-8")
    flags = ["--data", "t.txt", *SMALL_NETWORK, "--warmup", 5, "--minutes", 0.03, "--out", "a.pth"]
    assert in_process("main.py", *flags, "--stop-at", 2)[0] == 0
    code, out, errors = in_process("main.py", "--resume", "--out", "a.pth")
    assert code == 0 and "(--preset small --steps " in out, errors


def test_a_plan_that_is_made_cannot_be_changed_by_minutes(in_process, tmp_path):
    """--resume --minutes 20 was accepted, and did nothing."""
    (tmp_path / "t.txt").write_text("to be or not to be\n" * 200, encoding="utf-8")
    flags = ["--data", "t.txt", *SMALL_NETWORK, "--steps", 9, "--stop-at", 3, "--out", "a.pth"]
    assert in_process("main.py", *flags)[0] == 0
    code, _, errors = in_process("main.py", "--resume", "--minutes", 20, "--out", "a.pth")
    assert code == 2 and "--minutes 20.0 contradicts the run" in errors


def test_patience_ends_a_run(in_process, tmp_path):
    (tmp_path / "t.txt").write_text("to be or not to be\n" * 200, encoding="utf-8")
    flags = ["--data", "t.txt", *SMALL_NETWORK, "--steps", 50, "--eval-every", 1, "--lr", 50, "--muon-lr", 50]
    code, out, errors = in_process("main.py", *flags, "--grad-clip", 1e-9, "--patience", 2, "--out", "a.pth")
    assert code == 0 and "2 evaluations without a new best" in out, errors


def test_two_digits_and_words():
    assert [two_digits(n) for n in (7, 43, 437, 6999)] == [7, 43, 430, 6900]
    assert in_minutes(40) == "about 40 seconds" and in_minutes(600) == "about 10 minutes"


def test_the_plot_falls_from_the_first_loss_to_the_last():
    lines = plot([3.0, 2.0, 1.0], height=3)
    assert [line.split("|")[1] for line in lines] == ["*", " *", "  *"] and "3.000" in lines[0] and "1.000" in lines[-1]
    assert max(len(line) for line in plot([1 / n for n in range(1, 500)])) <= 70 and plot([1.0, 2.0]) == []
