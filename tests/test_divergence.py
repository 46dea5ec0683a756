"""A loss or a gradient that is not finite stops the run before the update; what was saved stays, and says its step."""

import math

import pytest

import main
from conftest import assert_one_error_line
from faults import OUT, SMALL_RUN, assert_same_bits, files_of, run_here, write_corpus

RUN = [*SMALL_RUN, "--steps", 6, "--eval-every", 2, "--lr", 0.01, "--schedule", "linear", "--warmup", 0]


@pytest.mark.parametrize(
    "place, value",
    [("compute_gradients", math.nan), ("clip_gradients", math.inf), ("evaluate", math.nan), ("evaluate", -math.inf)],
)
def test_numbers_that_are_not_finite_stop_before_the_update(in_process, tmp_path, monkeypatch, place, value):
    write_corpus(tmp_path)
    run_here(tmp_path, *RUN, "--stop-at", 2)
    before = files_of(tmp_path)
    original, calls = getattr(main, place), []

    def diverging(*arguments):
        calls.append(place)
        result = original(*arguments)
        return value if place == "evaluate" or len(calls) == 2 else result

    with monkeypatch.context() as patched:
        patched.setattr(main, place, diverging)
        code, _, errors = in_process("main.py", "--resume")
    assert code == 3
    step, rate = (4, "--lr") if place == "evaluate" else (3, "0.01 at its peak")
    assert_one_error_line(errors, f"step {step}", str(value), rate, "--lr", "saved at step 2 of 6", "--resume")
    assert files_of(tmp_path) == before
    assert in_process("main.py", "--resume")[0] == 0  # and nothing stands in the way of going on
    (tmp_path / "whole").mkdir()
    run_here(write_corpus(tmp_path / "whole"), *RUN)
    assert_same_bits(tmp_path / OUT.last, tmp_path / "whole" / OUT.last)
