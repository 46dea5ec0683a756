"""A loss or a gradient that is not finite stops the run before the update; what was saved stays, and says its step."""

import math

import pytest
import torch

import main
from faults import OUT, SMALL_RUN, files_of, run_here, write_corpus
from helpers import assert_one_error_line, assert_same_state
from tiny_decoder import next_token_loss

RUN = [*SMALL_RUN, "--steps", 6, "--eval-every", 2, "--lr", 0.01, "--schedule", "linear", "--warmup", 0]
RUN += ["--out", OUT.best]
RESUME = ["--resume", "--out", OUT.best]
TRUE_GRADIENTS = main.compute_gradients


def no_loss(run, network) -> float:
    return TRUE_GRADIENTS(run, network) if run.state.step < 3 else math.nan


def infinite_gradient(run, network) -> float:
    loss = TRUE_GRADIENTS(run, network)
    for p in run.model.parameters():
        p.grad.fill_(math.inf if run.state.step == 3 else 0)
    return loss


def no_validation_loss(logits, targets) -> torch.Tensor:
    return torch.tensor(-math.inf) if torch.is_inference(logits) else next_token_loss(logits, targets)


@pytest.mark.parametrize(
    "name, replacement, words",
    [
        ("compute_gradients", no_loss, ["step 3", "nan", "now 0.006, at its peak 0.01"]),
        ("compute_gradients", infinite_gradient, ["step 3", "inf"]),
        ("next_token_loss", no_validation_loss, ["step 4", "-inf"]),
    ],
)
def test_what_is_not_finite_stops_a_run_that_can_be_resumed(output_of, tmp_path, monkeypatch, name, replacement, words):
    """With one of main.py's functions replaced, a run stops with code 3; resumed without, it ends as if undisturbed."""
    run_here(write_corpus(tmp_path), *RUN, "--stop-at", 2)
    before = files_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(main, name, replacement)
        errors = output_of("main.py", *RESUME, code=3)
    assert_one_error_line(errors, *words, "--lr", "saved at step 2 of 6", "--resume")
    assert files_of(tmp_path) == before
    output_of("main.py", *RESUME)
    run_here(write_corpus(tmp_path / "whole"), *RUN)
    assert_same_state(tmp_path / OUT.last, tmp_path / "whole" / OUT.last)
