"""The pictures of README and docs; the README's curve is drawn from measurements only. The figures here are made up."""

import json
from xml.etree import ElementTree

import pytest

from benchmarks import plots
from helpers import written
from support.command import UserError

MADE_UP = {"tiny": [(2, 2.5), (6, 1.9)], "small": [(20, 2.2), (150, 1.5)], "reference-cpu": [(20, 2.4), (90, 1.9)]}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A folder of made-up measurements, and where the picture goes."""
    for preset, points in MADE_UP.items():
        lines = [json.dumps({"train_seconds": seconds, "val_loss": loss}) + "\n" for seconds, loss in points]
        written(tmp_path / f"{preset}.metrics.jsonl", "".join(lines))
    monkeypatch.setattr(plots, "MEASURED", tmp_path)
    monkeypatch.setattr(plots, "PICTURE", tmp_path / "images" / "loss.svg")
    monkeypatch.setattr(plots, "ORTHOGONALIZE_PICTURE", tmp_path / "images" / "orthogonalize.svg")
    return tmp_path


def test_the_same_measurements_give_the_same_svg_and_others_another(measured, output_of):
    pytest.importorskip("matplotlib")
    pictures = []
    for more in ("", "", '{"train_seconds": 300, "val_loss": 1.3}\n'):
        with open(measured / "small.metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(more)
        assert "loss.svg" in output_of("bench.py", "plots")
        pictures.append(plots.PICTURE.read_bytes())
    assert ElementTree.fromstring(pictures[0]).tag.endswith("svg")
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_file_that_is_missing_or_no_metrics_file_is_named(measured):
    written(measured / "tiny.metrics.jsonl", "[1]")
    with pytest.raises(UserError, match="tiny.metrics.jsonl is no metrics file"):
        plots.bench_plots()
    (measured / "tiny.metrics.jsonl").unlink()
    with pytest.raises(UserError, match="tiny.metrics.jsonl is missing"):
        plots.bench_plots()
