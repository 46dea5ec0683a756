"""The arithmetic behind the benchmarks' tables."""

import math

from benchmarks.train import seconds_per_step, seconds_to

RUN = [
    {"step": 10, "train_seconds": 9.0, "val_loss": 2.0},
    {"step": 20, "train_seconds": 11.0, "val_loss": 1.5},
    {"step": 40, "train_seconds": 15.0, "val_loss": 1.6},
]


def test_seconds_to_a_loss_and_seconds_of_a_step():
    """Those of the first evaluation at or below the loss; the first steps, which are slow, are left out."""
    assert [seconds_to(RUN, loss) for loss in (2.1, 2.0, 1.99, 1.5, 1.4)] == [9.0, 9.0, 11.0, 11.0, math.inf]
    assert seconds_per_step(RUN) == (15 - 9) / 30
