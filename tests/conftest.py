"""Fixtures: every test in an empty folder, and the commands run as a user runs them."""

import importlib
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # so that numpy starts no thread when it is imported: tests/faults.py forks

import pytest
import torch
from tqdm import tqdm

from helpers import ROOT, tiny_config
from support import start
from support.command import run as run_command
from tiny_decoder import TinyGPT

# One thread: the tests' models are too small for more, and the bits do not depend on the machine's cores.
torch.set_num_threads(1)
tqdm.monitor_interval = 0  # no thread that watches the progress bars


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that fork come first, before the libraries that other tests use have started threads."""
    items.sort(key=lambda item: "robustness" not in item.path.parts)


def modified(*folders: Path) -> set[tuple[str, int]]:
    """Path and modification time of these folders and of all that is in them."""
    paths = [path for folder in folders if folder.exists() for path in (folder, *folder.rglob("*"))]
    return {(str(path), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="session", autouse=True)
def away_from_home(tmp_path_factory):
    """The tests leave the repository's data/ and checkpoints/ as they are: a person has data and models there."""
    folders = (ROOT / "data", ROOT / "checkpoints")
    before = modified(*folders)
    os.chdir(tmp_path_factory.mktemp("session"))
    start.beside_scripts = os.path.join  # in this process, as if the scripts were in the working folder
    yield
    if changed := sorted({path for path, _ in before ^ modified(*folders)}):
        words = "a test wrote into the repository's own folders (or you did, meanwhile)"
        pytest.fail(f"{words}: {', '.join(changed)}", pytrace=False)


@pytest.fixture(autouse=True)
def own_folder_and_speed(tmp_path, monkeypatch):
    """Every test works in a folder of its own, and what a command does there depends on no machine's speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recipe.product_rate", lambda *_: 1.0)


@pytest.fixture
def tiny_model() -> TinyGPT:
    torch.manual_seed(0)
    return TinyGPT(tiny_config(num_layers=2)).eval()


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with one thread and UTF-8 pipes."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **changes}


@pytest.fixture
def command(tmp_path):
    """Run a script of the repository in an empty folder: `command("main.py", "--steps", "5")`."""

    def run(script: str, *arguments: object, code: int | None = 0, env: dict | None = None, cwd: Path = tmp_path):
        assert cwd.resolve() != ROOT, "a test must not touch a person's own data and models"
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=cwd,
            env=env or environment(),
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        if code is not None:
            assert done.returncode == code, f"{script} {arguments} left with {done.returncode}:\n{done.stderr}"
        return done

    return run


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run a command within the test's process, which saves the seconds that importing torch takes, in the empty folder:
    `in_process("main.py", "--steps", "5")` -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # support.command.run replaces it
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of all tests that follow

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr("main.STARTED", time.perf_counter())  # that of the tests is long ago
        with pytest.raises(SystemExit) as stop:
            run_command(importlib.import_module(script.removesuffix(".py")).main)
        return (stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def output_of(in_process):
    """The stdout of a command that ends well, or with another code its stderr: `output_of("main.py", …, code=2)`.

    A command that refuses what it was given has no stdout.
    """

    def run(script: str, *arguments: object, code: int = 0) -> str:
        left, output, errors = in_process(script, *arguments)
        assert left == code, f"{script} {arguments} left with {left}:\n{errors}"
        assert left != 2 or not output, output
        return errors if code else output

    return run
