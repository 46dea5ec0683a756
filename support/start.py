"""What every script imports first, before anything that takes time.

Importing PyTorch takes a second or two. Whoever presses Ctrl-C meanwhile gets one line and exit code 130, not a
traceback; `support.command.run` then takes over.

PyTorch's threads wait for each other after every operation, by default in a busy loop. Beside another program that
loop takes the time that the other thread needs. So they wait busily for a moment only, then sleep; and where other
programs are computing already, they sleep at once (measured in docs/training.md). The results are the same bits.
"""

import contextlib
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()
PARENT = os.getppid()  # torchrun, say, if it lives
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def beside_scripts(*parts: str) -> str:
    """A path in the scripts' folder, from wherever a script is called; from nearby it is short."""
    path = os.path.join(ROOT, *parts)
    with contextlib.suppress(ValueError):  # on Windows, the working folder may be on another drive
        path = min(path, os.path.relpath(path), key=len)
    return path


def leave(_signum, _frame) -> None:
    """Say so and end at once: nothing has been done yet that could be lost."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def check_environment() -> None:
    """Leave with one line that says what to do if this Python is too old or lacks a package."""
    missing = [name for name in ("torch", "numpy", "tqdm", "filelock") if importlib.util.find_spec(name) is None]
    problem = f"not installed for this Python: {', '.join(missing)}" if missing else ""
    if sys.version_info < (3, 10):  # noqa: UP036  an older Python runs this file too
        problem = f"Python 3.10 or newer is needed, and this is {sys.version_info[0]}.{sys.version_info[1]}"
    if problem:
        advice = "activate the virtual environment (see README), or: python -m pip install -r requirements.txt"
        print(f"error: {problem}; {advice}", file=sys.stderr)
        sys.exit(2)


# A script of ours runs, not a test, a notebook, or a reader's own script, which import one.
SCRIPTS = ("main.py", "generate.py", "convert.py", "bench.py", "data_setup.py", "train_tokenizer.py")
IS_SCRIPT = os.path.abspath(sys.argv[0]) in [os.path.join(ROOT, name) for name in SCRIPTS]
if IS_SCRIPT:
    signal.signal(signal.SIGINT, leave)
    check_environment()


def others_compute(root: str = "/") -> bool:
    """Whether other programs now leave fewer processors free than PyTorch will use (one a core, or OMP_NUM_THREADS).

    False where the system does not tell: only Linux does.
    """
    running = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for _ in range(5):  # who runs for a moment only, does not count
            # 0.20 0.18 0.12 running/all last: threads, this one too
            running.append(int(Path(root, "proc/loadavg").read_text().split()[3].split("/")[0]) - 1)
            time.sleep(0.002)
        allowed = len(os.sched_getaffinity(0))  # only Linux has it
        siblings = Path(root, "sys/devices/system/cpu").glob("cpu*/topology/thread_siblings_list")
        cores = len({path.read_text() for path in siblings}) or allowed
        return min(running) + int(os.environ.get("OMP_NUM_THREADS") or min(cores, allowed)) > os.cpu_count()
    return False


# Intel's Fortran library, which conda's numpy has, would end a run at Ctrl-C before anything is saved (Windows).
os.environ.setdefault("FOR_DISABLE_CONSOLE_CTRL_HANDLER", "1")
WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}  # of the OpenMP on Linux; on macOS and Windows
if not os.environ.keys() & {"OMP_WAIT_POLICY", *WAITING}:  # the user's own choice counts
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE"} if others_compute() else WAITING)
