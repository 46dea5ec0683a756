"""What the tests share: small models, small texts, and the commands run as a user runs them."""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from formats.checkpoint import TRAINING, read_checkpoint
from support.command import run as run_command
from tiny_decoder import TinyGPT, TinyGPTConfig

ROOT = Path(__file__).resolve().parent.parent
# One thread: the tests' models are too small for more, and the bits do not depend on the machine's cores.
torch.set_num_threads(1)

SMALL_NETWORK = ["--max-seq", "16", "--embed-dim", "16", "--num-heads", "2", "--num-layers", "1", "--batch-size", "4"]


@pytest.fixture(scope="session", autouse=True)
def away_from_home(tmp_path_factory):
    """Commands use data/ and checkpoints/ of the working folder: the tests leave the repository, where a person has
    data and models of their own."""
    os.chdir(tmp_path_factory.mktemp("session"))


@pytest.fixture(autouse=True)
def fast_machine(monkeypatch):
    """What a command does in this process does not depend on the machine's speed."""
    monkeypatch.setattr("recipe.product_rate", lambda *_: 1e9)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def tiny_config(**changes) -> TinyGPTConfig:
    """One layer, width 8: enough for every property of the network."""
    fields = {"vocab_size": 11, "max_seq": 6, "embed_dim": 8, "num_heads": 2, "num_layers": 1, **changes}
    return TinyGPTConfig(**fields)


@pytest.fixture
def tiny_model() -> TinyGPT:
    torch.manual_seed(0)
    return TinyGPT(tiny_config(num_layers=2)).init_weights().eval()


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
    """Run a command within the test's process, which saves the seconds that importing torch takes.

    `in_process("main.py", "--steps", "5")` -> (exit code, stdout, stderr). The working folder is the empty tmp_path.
    """
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # support.command.run replaces it

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_command(importlib.import_module(script.removesuffix(".py")).main)
        return (stop.value.code, *capsys.readouterr())

    return run


def assert_one_error_line(errors: str, *words: str) -> None:
    """A command's stderr has one `error:` line that holds these words, and no traceback."""
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in errors, errors
    for word in words:
        assert word in lines[0], lines[0]


def state_of(path: Path) -> dict[str, object]:
    """Every tensor, number and setting of a training state; without clock times and what a resume may change."""
    header, tensors = read_checkpoint(path, TRAINING)
    left_out = {"train_seconds", "seconds_sum", "stop_at", "resume", "launch", "out"}
    plain = {"config": header["config"], "tokenizer": header["tokenizer"], **header["settings"], **header["training"]}
    return {**tensors, **{name: value for name, value in plain.items() if name not in left_out}}


def assert_same_state(a: Path, b: Path) -> None:
    """Two training states are equal to the last bit."""
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, f"{name}: {value} and {second[name]}"
