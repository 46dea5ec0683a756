"""The pictures of README and docs; the README's curve is drawn from measurements only. The figures here are made up."""

import json
import sys
from xml.etree import ElementTree

import pytest

from benchmarks import plots
from support.command import UserError

MADE_UP = {"tiny": [(2, 2.5), (6, 1.9)], "small": [(20, 2.2), (150, 1.5)], "reference-cpu": [(20, 2.4), (90, 1.9)]}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A folder of made-up measurements, and where the picture goes."""
    for preset, points in MADE_UP.items():
        lines = [json.dumps({"train_seconds": seconds, "val_loss": loss}) for seconds, loss in points]
        (tmp_path / f"{preset}.metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(plots, "MEASURED", tmp_path)
    monkeypatch.setattr(plots, "PICTURE", tmp_path / "images" / "loss.svg")
    monkeypatch.setattr(plots, "ORTHOGONALIZE_PICTURE", tmp_path / "images" / "orthogonalize.svg")
    return tmp_path


def test_the_pictures_are_svgs_that_come_out_the_same_again(measured, in_process):
    pytest.importorskip("matplotlib")
    pictures = []
    for _ in range(2):
        code, out, err = in_process("bench.py", "plots")
        assert code == 0 and "loss.svg" in out and "orthogonalize.svg" in out, err
        pictures.append([path.read_bytes() for path in sorted((measured / "images").iterdir())])
    assert [ElementTree.fromstring(picture).tag.rsplit("}")[-1] for picture in pictures[0]] == ["svg", "svg"]
    assert pictures[0] == pictures[1]


def test_other_measurements_give_another_picture(measured):
    pytest.importorskip("matplotlib")
    plots.bench_plots()
    before = plots.PICTURE.read_bytes()
    line = json.dumps({"train_seconds": 300, "val_loss": 1.3})
    with open(measured / "small.metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    plots.bench_plots()
    assert plots.PICTURE.read_bytes() != before


def test_a_missing_measurement_says_how_it_is_made(measured):
    (measured / "reference-cpu.metrics.jsonl").unlink()
    with pytest.raises(UserError, match="reference-cpu.metrics.jsonl is missing: docs/measured/README.md"):
        plots.bench_plots()


@pytest.mark.parametrize("content", ["", "no JSON", '{"step": 1}', "[1]", '{"train_seconds": null, "val_loss": 1}'])
def test_another_file_is_refused(measured, content):
    (measured / "tiny.metrics.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="no metrics file"):
        plots.bench_plots()


def test_without_matplotlib_it_says_what_to_install(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        plots.bench_plots()
