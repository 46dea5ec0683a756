"""Signals at every phase of a run: the step is finished and saved once, and the resumed run is bit-exact."""

import builtins
import io
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import main
from faults import OUT, SMALL_RUN, Child, assert_nothing_lost, copy_of, files_of, train, write_corpus
from helpers import ROOT, assert_same_state, written

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to be fast, and POSIX signals")
RUN = [*SMALL_RUN, "--steps", 6, "--eval-every", 2, "--out", OUT.best]
RESUME = ["--resume", "--out", OUT.best]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("uninterrupted"))
    train(folder, *RUN)
    return folder


def signal_in(name: str, *signums: int, call: int = 1):
    """Prepares a child to send itself signals at the `call`th call of a function of main.py, and to count saves."""

    def prepare():
        original, save, calls = getattr(main, name), main.save_state, []
        if 1 in signums:  # SIGHUP, which nohup has ignored
            signal.signal(1, signal.SIG_DFL)

        def interrupted(*arguments):
            calls.append(name)
            if len(calls) == call:
                for signum in signums:
                    os.kill(os.getpid(), signum)
            return original(*arguments)

        def counted(run):
            (interrupted if name == "save_state" else save)(run)
            with open("saves.txt", "a", encoding="utf-8") as file:
                file.write(f"{run.state.step}\n")

        setattr(main, name, interrupted)
        main.save_state = counted

    return prepare


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])  # Windows has no SIGHUP
@pytest.mark.parametrize(
    "phase, call, saves", [("train_step", 3, [2, 3]), ("evaluate", 1, [2]), ("save_state", 1, [2])]
)
def test_a_signal_finishes_the_step_and_saves_once(uninterrupted, tmp_path, name, code, phase, call, saves):
    folder = write_corpus(tmp_path / "run")
    child = train(folder, *RUN, prepare=signal_in(phase, getattr(signal, name), call=call), code=code)
    last_step = saves[-1]
    assert f"saved at step {last_step} of 6; continue with: python main.py --resume" in child.stderr
    assert "Traceback" not in child.stderr and len(child.stderr.splitlines()) == 1
    assert [int(line) for line in (folder / "saves.txt").read_text().split()] == saves
    train(folder, *RESUME)
    assert_same_state(folder / OUT.last, uninterrupted / OUT.last)
    assert files_of(folder)["tiny_decoder.metrics.jsonl"].count(b"\n") == 3


@pytest.mark.parametrize("phase, saved_step", [("train_step", 0), ("compute_gradients", 1), ("evaluate", 4)])
def test_a_second_sigint_ends_at_once(uninterrupted, tmp_path, phase, saved_step):
    folder = write_corpus(tmp_path / "run")
    child = train(folder, *RUN, prepare=signal_in(phase, signal.SIGINT, signal.SIGINT, call=2), code=130)
    assert "Traceback" not in child.stderr and child.stderr.startswith("interrupted: ")
    saved = assert_nothing_lost(folder, child.stdout)
    assert saved == saved_step
    if saved:
        train(folder, *RESUME)
        assert_same_state(folder / OUT.last, uninterrupted / OUT.last)


@pytest.mark.parametrize("at", [2, 5, 10])  # the first one copies the earlier model
def test_a_second_sigint_in_the_middle_of_writing_leaves_files_that_load(uninterrupted, tmp_path, at):
    """Two signals at a write inside torch.save, which hides what is raised there behind an error of its own."""
    folder = copy_of(uninterrupted, tmp_path / "run")
    earlier = files_of(folder)

    def prepare():
        real_open, writes = builtins.open, []

        class Watched(io.FileIO):
            def write(self, data):
                writes.append(len(data))
                if len(writes) == at:
                    for _ in range(2):
                        os.kill(os.getpid(), signal.SIGINT)
                return super().write(data)

        def open_watched(path, mode="r", *arguments, **options):
            return Watched(path, mode) if mode == "wb" else real_open(path, mode, *arguments, **options)

        builtins.open = open_watched

    child = train(folder, *RUN, prepare=prepare, code=130)
    assert child.stderr.startswith("interrupted: ") and "Traceback" not in child.stderr
    assert_nothing_lost(folder, child.stdout, earlier)
    assert not list(folder.rglob("*.tmp"))


def test_sigint_before_the_first_step_is_quiet(tmp_path):
    child = Child(write_corpus(tmp_path), "main.py", *RUN, prepare=signal_in("announce", signal.SIGINT))
    assert child.wait() == 130
    assert child.stderr == "interrupted\n"


@pytest.mark.parametrize("signums", [(signal.SIGINT,), (signal.SIGINT, signal.SIGINT)])
def test_a_signal_in_the_last_report_does_not_ask_to_continue(tmp_path, signums):
    folder = write_corpus(tmp_path)
    code = 130 if len(signums) == 2 else 0
    child = train(folder, *RUN, prepare=signal_in("print_step", *signums, call=3), code=code)
    assert "--resume" not in child.stderr + child.stdout
    assert "python generate.py" in (child.stderr if code else child.stdout)
    assert "has made 6 steps already" in train(folder, *RESUME, code=2).stderr


@pytest.mark.skipif(torch.cuda.is_available() or not os.path.exists("/proc/self/task"), reason="CUDA; needs /proc")
def test_the_process_that_forked_has_one_thread():
    """Python 3.12 and newer warned 90 times of deadlocks: numpy and tqdm had started a thread each."""
    assert len(os.listdir("/proc/self/task")) == 1


# --- Before a command has begun ----------------------------------------------------------------------------------

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_python_imports_is_one_line(tmp_path, script):
    """Python tells each import: right after the script's first one, and after 300 and 1,000 more (several packages)."""
    for number in (0, 300, 1000):
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", str(ROOT / script), "--help"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # communicate() does not know what a buffer holds
        )
        with process:
            for line in process.stderr:
                if line.split(b"|")[-1].strip() == b"support.start":
                    break
            for _ in range(number):
                process.stderr.readline()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        said = [line for line in errors.decode().splitlines() if not line.startswith("import time:")]
        assert (process.returncode, said, output) == (130, ["interrupted"], b""), number


def test_a_readers_own_script_keeps_its_own_ctrl_c(tmp_path):
    """It was taken for one of ours, because of its folder: Ctrl-C ended it at once, past every `finally`."""
    shutil.copytree(ROOT / "support", tmp_path / "support")
    code = "import signal\nbefore = signal.getsignal(2)\nimport support.start\nassert signal.getsignal(2) is before"
    subprocess.run([sys.executable, written(tmp_path / "mine.py", code)], check=True)


LEAVING = """
import atexit, os, signal, sys
sys.argv = [{script!r}]
import support.start
from support.command import run
atexit.register(os.kill, os.getpid(), signal.SIGINT)
def command():
    raise KeyboardInterrupt
run(command)
"""


def test_a_second_ctrl_c_while_python_ends_is_not_seen(tmp_path):
    """One of forty showed a traceback from PyTorch's own end."""
    code = LEAVING.format(script=str(ROOT / "generate.py"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
