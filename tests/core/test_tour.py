"""The notebook and docs/exercises.md: the code runs, and prints what is stored and promised."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from helpers import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)\n^```$", PAGE, re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", re.MULTILINE)
NUMBER = re.compile(r"\d+\.?\d*")
TABLE = {name: [float(number) for number in numbers] for name, *numbers in ROW.findall(PAGE)}


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


def numbers(text: str) -> dict[str, float]:
    """The lines `name: number` of a text."""
    return {name: float(number) for name, number in (line.rsplit(": ", 1) for line in text.splitlines())}


def test_the_notebook_ends_in_the_exercises_of_the_page():
    exercises = code_cells(NOTEBOOK)[-len(BLOCKS) :]
    assert ["".join(cell["source"]) for cell in exercises] == BLOCKS
    titles = re.findall(r"^## (\d+\. .*)$", PAGE, re.MULTILINE)
    headings = ["".join(cell["source"]).splitlines()[0] for cell in NOTEBOOK["cells"]]
    assert [heading[4:] for heading in headings if heading.startswith("### ")] == titles and len(titles) == 12


def test_the_page_gives_the_numbers_that_the_notebook_stores():
    stored = "".join(printed(cell) for cell in code_cells(NOTEBOOK)[-len(BLOCKS) :])
    assert numbers(stored) == {name: row[0] for name, row in TABLE.items()}
    assert all(low <= min(measured) and max(measured) <= high for *measured, low, high in TABLE.values())


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after it ran in docs/ of a copy of the code, without anybody's data."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    copy = tmp_path_factory.mktemp("repository")
    for folder in ("support", "corpora", "formats", "sampling"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    (copy / "docs").mkdir()
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(copy / "docs")}})
    client.execute()
    return code_cells(notebook)


@pytest.mark.slow
def test_the_stored_outputs_are_those_of_this_code(executed):
    """Except what is sampled or drawn: numbers may differ a little between processors, all else may not. If it fails
    after a change that is meant, store them anew where data/ is empty: `jupyter execute --inplace docs/tour.ipynb`."""
    for now, stored in zip(executed[: -len(BLOCKS)], code_cells(NOTEBOOK), strict=False):
        assert {output["output_type"] for output in now["outputs"]} == {o["output_type"] for o in stored["outputs"]}
        assert "stderr" not in [output.get("name") for output in now["outputs"]]  # a warning would confuse a class
        if "varies" not in stored["metadata"].get("tags", []):
            assert NUMBER.sub("#", printed(now)) == NUMBER.sub("#", printed(stored))
            values = [[float(value) for value in NUMBER.findall(printed(cell))] for cell in (now, stored)]
            assert values[0] == pytest.approx(values[1], rel=0.1, abs=0.05)


@pytest.mark.slow
def test_the_exercises_print_what_the_page_expects_in_float32(executed):
    found = numbers("".join(printed(cell) for cell in executed[-len(BLOCKS) :]))
    assert found.keys() == TABLE.keys()
    wrong = {name: number for name, number in found.items() if not TABLE[name][2] <= number <= TABLE[name][3]}
    assert not wrong


def test_in_an_empty_folder_it_asks_for_the_code_or_fetches_it(tmp_path, monkeypatch):
    """A bare StopIteration in the first cell said nothing to anybody."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    first = "".join(code_cells(NOTEBOOK)[0]["source"])
    with pytest.raises(FileNotFoundError, match="Set CODE_FOLDER to the folder that holds tiny_decoder.py"):
        exec(first, {})
    published = tmp_path / "published"
    published.mkdir()
    (published / "tiny_decoder.py").touch()
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "first")):
        subprocess.run(["git", "-c", "core.hooksPath=/dev/null", *arguments], cwd=published, check=True)
    with_address = first.replace("CODE_ADDRESS = None", f"CODE_ADDRESS = {published.as_uri()!r}")
    names = {}
    exec(with_address, names)
    assert names["ROOT"] == tmp_path / "TinyGPT"
