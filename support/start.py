"""What every script imports first, before anything that takes time.

Importing PyTorch takes a second or two. Whoever presses Ctrl-C meanwhile gets one line and exit code 130, not a
traceback; `support.command.run` then takes over.

PyTorch's threads wait for each other after every operation, by default in a busy loop. Beside another program that
loop takes the time that the other thread needs. So they wait busily for a moment only, then sleep: alone that costs
1 to 4%, and beside others it is much faster (measured in docs/training.md). The results are the same bits.
"""

import contextlib
import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def leave(_signum, _frame) -> None:
    """Say so and end at once: nothing has been done yet that could be lost."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}  # of the OpenMP on Linux; on macOS and Windows
if not os.environ.keys() & {"OMP_WAIT_POLICY", *WAITING}:  # the user's own choice counts
    os.environ.update(WAITING)

if os.path.dirname(os.path.abspath(sys.argv[0])) == ROOT:  # a script of ours, not a test or a notebook that imports one
    signal.signal(signal.SIGINT, leave)
