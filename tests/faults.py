"""Tools of the fault tests: runs in a forked child, file operations that fail on demand, what must hold afterwards."""

import builtins
import contextlib
import importlib
import io
import os
import re
import shutil
import signal
import stat
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tqdm.std import TqdmDefaultWriteLock, tqdm

from formats.checkpoint import load_model
from support import command as cli
from training.state import RunPaths

OUT = RunPaths(Path("checkpoints/tiny_decoder.pth"))
# A network and a corpus so small that a run of a few steps takes a fraction of a second.
NETWORK = ["--max-seq", 8, "--embed-dim", 8, "--num-heads", 2, "--num-layers", 1, "--batch-size", 4]
SMALL_RUN = ["--data", "text.txt", *NETWORK, "--device", "cpu", "--dtype", "float32"]
SMALL_RUN += ["--dropout", "0.1", "--ema-decay", "0.5"]
TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 8
# This process imports what the first optimizer step does (over a second), before children are forked.
PARAMETER = torch.nn.Parameter(torch.zeros(2))
PARAMETER.grad = torch.ones(2)
torch.optim.AdamW([PARAMETER]).step()


def write_corpus(folder: Path) -> Path:
    """The folder, with the small text in it."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


class Child:
    """A command in a forked copy of this process, which has torch imported already; its output goes to files."""

    def __init__(self, folder: Path, script: str, *arguments: object, prepare: Callable[[], None] = lambda: None):
        self.folder, self.output, self.errors = folder, folder / "stdout.txt", folder / "stderr.txt"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                code = self.child(script, arguments, prepare)
            finally:
                os._exit(code)

    def child(self, script: str, arguments: tuple, prepare: Callable[[], None]) -> int:
        os.chdir(self.folder)
        sys.stdout = open(self.output, "w", buffering=1, encoding="utf-8")
        sys.stderr = open(self.errors, "w", buffering=1, encoding="utf-8")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [script, *map(str, arguments)]
        torch.set_num_threads(1)
        tqdm.set_lock(TqdmDefaultWriteLock.th_lock)  # its own is shared with the parent: a killed child may keep it
        command = importlib.import_module(script.removesuffix(".py")).main
        prepare()
        try:
            cli.run(command)
        except SystemExit as stop:
            return stop.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            return 98

    def wait(self, limit: float = 60) -> int:
        """The exit code, negative for a signal as in `subprocess`; a child that takes longer than `limit` is killed."""
        deadline = time.monotonic() + limit
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"no end after {limit} s:\n{self.stdout}\n{self.stderr}")
            time.sleep(0.005)

    @property
    def stdout(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    @property
    def stderr(self) -> str:
        return self.errors.read_text(encoding="utf-8") if self.errors.exists() else ""


def train(folder: Path, *arguments: object, prepare: Callable[[], None] = lambda: None, code: int = 0) -> Child:
    """A finished main.py in a child, that left with `code`."""
    child = Child(folder, "main.py", *arguments, prepare=prepare)
    assert child.wait() == code, child.stderr
    return child


def run_here(folder: Path, *arguments: object) -> None:
    """main.py in this process and in `folder`, for fixtures; works without fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        importlib.import_module("main").main()


class Faults:
    """Counts the operations that change files (open, write, fsync, rename) and lets number `nth` fail: `fail` is called
    instead, which raises an OSError, or ends the process. log: a file that gets the operations' names."""

    def __init__(self, nth: int, fail: Callable[[], None], log: int | None = None):
        self.nth, self.fail, self.log, self.count = nth, fail, log, 0

    def happens(self, name: str) -> None:
        self.count += 1
        if self.log:
            os.write(self.log, f"{name}\n".encode())
        if self.count == self.nth:
            self.fail()

    def install(self) -> None:
        """Replace the operations in this process; meant for a child, which ends with them."""
        faults, real_open = self, builtins.open

        class Raw(io.FileIO):
            def write(self, data):
                faults.happens("write")
                return super().write(data)

        def open_watched(path, mode="r", buffering=-1, encoding=None, **options):
            if not any(letter in mode for letter in "wax"):
                return real_open(path, mode, buffering, encoding, **options)
            faults.happens("open")
            buffered = io.BufferedWriter(Raw(path, mode.replace("b", "")))
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding)

        builtins.open = open_watched
        for name in ("fsync", "replace"):
            setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name: str, operation: Callable) -> Callable:
        def watched(*arguments):
            on_folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            self.happens("fsync folder" if on_folder else name)
            return operation(*arguments)

        return watched


def failing(number: int) -> Callable[[], None]:
    """A failure with this errno."""

    def fail():
        raise OSError(number, os.strerror(number))

    return fail


def announced_step(output: str) -> int:
    """The last step that a run's stdout reports as saved; 0 if none."""
    steps = re.findall(r"^(?:step +|saved at step )(\d+)", output, re.MULTILINE)
    return int(steps[-1]) if steps else 0


def assert_nothing_lost(folder: Path, output: str, earlier: dict[str, bytes] | None = None) -> int:
    """The newest state loads and is at least as far as announced, so does the best model, and every earlier file's
    bytes are still there under some name. Returns the step of the state, 0 if the run had none yet."""
    contents = [path.read_bytes() for path in (folder / "checkpoints").glob("*") if path.is_file()]
    for name, content in (earlier or {}).items():
        assert content in contents, f"the earlier {name} is lost"
    announced, paths = announced_step(output), RunPaths(folder / OUT.best)
    if paths.best.exists():
        load_model(paths.best)
    if not announced and not paths.last.exists() and not paths.previous.exists():
        return 0
    with contextlib.redirect_stderr(io.StringIO()) as loud:
        header, _, _ = paths.read_newest()
    assert header["training"]["step"] >= announced
    assert not loud.getvalue() or not paths.last.exists(), "a whole state was taken for a damaged one"
    return header["training"]["step"]


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of a run's files."""
    files = [path for path in (folder / "checkpoints").glob("*") if path.suffix in (".pth", ".jsonl")]
    return {path.name: path.read_bytes() for path in files}


def copy_of(template: Path, folder: Path) -> Path:
    """A copy of a finished run's folder."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder


def flip_a_bit(path: Path) -> None:
    """Damage the largest entry of a zip: one bit, where there are no headers and no padding."""
    with zipfile.ZipFile(path) as container:
        largest = max(container.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    name_size, extra_size = struct.unpack_from("<HH", content, largest.header_offset + 26)
    content[largest.header_offset + 30 + name_size + extra_size + largest.file_size // 2] ^= 1
    path.write_bytes(content)
