"""The notebook runs from the first cell to the last, on an empty machine."""

import json
import math
import re
import shutil
import sys

import pytest

from helpers import ROOT, tiny_config
from tiny_decoder import TinyGPT
from tokenizer import CharTokenizer

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
FOLDERS = ("support", "corpora", "formats", "sampling", "training")


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


def test_it_is_stored_without_outputs():
    for cell in code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8"))):
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the code, without anybody's data and models."""
    copy = tmp_path_factory.mktemp("repository")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    (copy / "docs").mkdir()
    return copy


@pytest.fixture(scope="module")
def executed(folder):
    """The notebook after it was run in docs/, with fewer steps and the text that needs no network."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = code_cells(notebook)[0]
    for line, instead in (('DATA = "auto"', 'DATA = "synthetic"'), ("STEPS = 180", "STEPS = 40")):
        assert line in first["source"]
        first["source"] = first["source"].replace(line, instead)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "docs")}})
    client.execute()
    return code_cells(notebook)


def the_cell_with(cells: list[dict], words: str) -> str:
    """What the one cell printed whose code holds these words."""
    (cell,) = (cell for cell in cells if words in cell["source"])
    return printed(cell)


@pytest.mark.slow
def test_it_shows_the_mask_and_the_loss_of_a_new_model(executed):
    mask = the_cell_with(executed, "print(causal_mask")
    assert mask.count("-inf") == 10  # above the diagonal of 5 x 5
    loss, entropy = re.search(r"loss ([\d.]+), ln V = .* = ([\d.]+)", the_cell_with(executed, "ln V")).groups()
    assert math.isclose(float(loss), float(entropy), abs_tol=0.1)


@pytest.mark.slow
def test_a_step_by_hand_lowers_the_loss(executed):
    before, after = map(float, re.findall(r"\d\.\d+", the_cell_with(executed, "optimizer.step()")))
    assert after < before


@pytest.mark.slow
def test_it_trains_writes_and_explains(executed, folder):
    assert "step    40 | train" in the_cell_with(executed, "train(run, stop)")
    assert the_cell_with(executed, "generate(window, 300").startswith("ROMEO:")
    assert the_cell_with(executed, "filter_stages(").split()[0] == "model"
    assert the_cell_with(executed, "Explainer(").count("<- sampled") == 2
    assert (folder / "checkpoints" / "tour.pth").is_file()
    assert (folder / "checkpoints" / "tour.html").read_text(encoding="utf-8").startswith("<!")


@pytest.mark.slow
def test_it_draws_the_attention_maps(executed):
    pytest.importorskip("matplotlib")
    (cell,) = (cell for cell in executed if "attention_maps" in cell["source"])
    assert [1 for output in cell["outputs"] if "image/png" in output.get("data", {})]


def test_without_matplotlib_the_map_is_text(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    text = "to be\n" * 2
    tokenizer = CharTokenizer.from_text(text)
    model = TinyGPT(tiny_config(vocab_size=tokenizer.vocab_size, max_seq=12))
    cells = code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    (source,) = ("".join(cell["source"]) for cell in cells if "attention_maps" in "".join(cell["source"]))
    exec(source, {"model": model, "tokenizer": tokenizer, "text": text})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(text)
    assert lines[0] == " t @" + " " * 11  # the first token sees itself alone
    assert [len(line[3:].rstrip()) <= t + 1 for t, line in enumerate(lines)] == [True] * 12


@pytest.mark.slow
def test_it_warns_of_nothing(executed):
    """A warning, of a character that the text lacks for example, would confuse a class."""
    errors = [output["text"] for cell in executed for output in cell["outputs"] if output.get("name") == "stderr"]
    assert not [text for text in errors if "Warning" in text]
