"""Default folders lie beside the scripts, from wherever these are called; typed paths are of the working folder."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import environment
from helpers import ROOT, SMALL_NETWORK, assert_one_error_line

SCRIPTS = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
pytestmark = pytest.mark.skipif(not SCRIPTS, reason="needs git, to know the scripts")


@pytest.fixture
def house(tmp_path) -> Path:
    """A copy of the scripts, with empty folders data/ and checkpoints/."""
    for name in SCRIPTS:
        if not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    for name in ("data", "checkpoints", "docs"):
        (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path


def call(folder: Path, *command: object, code: int = 0) -> str:
    """What a script prints when it is called from a folder."""
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_defaults_lie_beside_the_scripts_and_typed_paths_in_the_working_folder(house, tmp_path_factory):
    short = [*SMALL_NETWORK, "--data", "synthetic", "--steps", 2, "--eval-every", 2]
    call(house / "docs", "../main.py", *short)
    assert (house / "checkpoints/tiny_decoder.pth").is_file() and not list((house / "docs").iterdir())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    text = call(elsewhere, house / "generate.py", "--max-new-tokens", 5)
    assert "5 tokens" in text and not list(elsewhere.iterdir())
    call(elsewhere, house / "main.py", *short, "--out", "mine.pth")
    assert (elsewhere / "mine.pth").is_file()


@pytest.mark.parametrize("script", ["main.py", "generate.py", "convert.py", "train_tokenizer.py", "bench.py"])
def test_a_python_that_is_old_or_bare_is_told_what_to_do(script, tmp_path):
    """The scripts parse with Python 3.6, so that it can say that it is too old."""
    for name in (script, "support/start.py"):
        ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 6))
    bare = [sys.executable, "-S", "-E", ROOT / script]
    old = "import sys, runpy; sys.version_info = (3, 8, 0); sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[1])"
    aged = [sys.executable, "-c", f"{old}; runpy.run_path(sys.argv[0])", ROOT / script, ROOT]
    for command, words in ((bare, "not installed for this Python: torch"), (aged, "Python 3.10 or newer")):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", env=environment())
        assert done.returncode == 2 and not done.stdout
        assert_one_error_line(done.stderr, words, "pip install")
