"""The arithmetic behind the benchmarks' tables; the pictures, drawn from measurements only (made up here)."""

import json
import math
from xml.etree import ElementTree

import pytest

from benchmarks import plots
from benchmarks.tools import spread
from benchmarks.train import seconds_per_step, seconds_to
from helpers import written

RUN = [
    {"step": 10, "train_seconds": 9.0, "val_loss": 2.0},
    {"step": 20, "train_seconds": 11.0, "val_loss": 1.5},
    {"step": 40, "train_seconds": 15.0, "val_loss": 1.6},
]


def test_seconds_to_a_loss_and_seconds_of_a_step():
    """Those of the first evaluation at or below the loss; the first steps, which are slow, are left out."""
    assert [seconds_to(RUN, loss) for loss in (2.1, 2.0, 1.99, 1.5, 1.4)] == [9.0, 9.0, 11.0, 11.0, math.inf]
    assert seconds_per_step(RUN) == (15 - 9) / 30


def test_the_spread_is_median_and_range():
    assert spread([9.0, 7.0, 8.0], " s") == "8 (7 to 9) s"
    assert spread([1.25, 1.0, 2000.0], digits=1) == "1.2 (1.0 to 2,000.0)"
    assert spread([1.0, math.inf, math.inf]) == "2 of 3 never reached it"


def test_the_same_measurements_give_the_same_picture_and_others_another(tmp_path, monkeypatch, output_of):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "MEASURED", tmp_path)
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    pictures = []
    for lines in (RUN, RUN, RUN[:2]):
        for preset in plots.CURVES:
            written(tmp_path / f"{preset}.metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        output_of("bench.py", "plots")
        pictures.append((tmp_path / "loss.svg").read_bytes())
    assert ElementTree.fromstring(pictures[0]).tag.endswith("svg")
    assert pictures[0] == pictures[1] != pictures[2]
