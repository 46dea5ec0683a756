"""A loss or a gradient that is not finite stops the run before the update; what was saved stays, and says its step."""

import math

import pytest
import torch

import main
from faults import OUT, SMALL_RUN, files_of, run_here, write_corpus
from helpers import assert_one_error_line, assert_same_state
from tiny_decoder import next_token_loss

RUN = [*SMALL_RUN, "--steps", 6, "--eval-every", 2, "--lr", 0.01, "--schedule", "linear", "--warmup", 0]


def infinite_gradient(run) -> float:
    for p in run.model.parameters():
        p.grad.fill_(math.inf)
    return 1.0


def loss_of(value: float):
    """Stands in place of `next_token_loss`, in evaluations only."""

    def loss(logits, targets):
        return torch.tensor(value) if torch.is_inference(logits) else next_token_loss(logits, targets)

    return loss


@pytest.mark.parametrize(
    "value, spoil", [("nan", lambda run: math.nan), ("inf", lambda run: math.inf), ("inf", infinite_gradient)]
)
def test_a_step_that_is_not_finite_stops_before_the_update(in_process, tmp_path, monkeypatch, value, spoil):
    original, calls = main.compute_gradients, []

    def diverging(run, network):
        calls.append(run.state.step)
        loss = original(run, network)
        return spoil(run) if len(calls) == 2 else loss

    with monkeypatch.context() as patched:
        stop_and_go_on(in_process, tmp_path, patched, "compute_gradients", diverging, "step 3", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_validation_loss_that_is_not_finite_stops_before_anything_is_saved(in_process, tmp_path, monkeypatch, value):
    with monkeypatch.context() as patched:
        stop_and_go_on(in_process, tmp_path, patched, "next_token_loss", loss_of(value), "step 4", str(value))


def stop_and_go_on(in_process, folder, patched, name, replacement, *words) -> None:
    """A resumed run with one of main.py's functions replaced stops with code 3; without, it ends as one that never
    stopped."""
    write_corpus(folder)
    run_here(folder, *RUN, "--stop-at", 2)
    before = files_of(folder)
    patched.setattr(main, name, replacement)
    code, _, errors = in_process("main.py", "--resume")
    patched.undo()
    assert code == 3
    assert_one_error_line(errors, *words, "--lr", "saved at step 2 of 6", "--resume")
    assert files_of(folder) == before
    assert in_process("main.py", "--resume")[0] == 0  # and nothing stands in the way of going on
    (folder / "whole").mkdir()
    run_here(write_corpus(folder / "whole"), *RUN)
    assert_same_state(folder / OUT.last, folder / "whole" / OUT.last)
