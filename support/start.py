"""What every script imports first, before anything that takes time.

Importing PyTorch takes a second or two. Whoever presses Ctrl-C meanwhile gets one line and exit code 130, not a
traceback; `support.command.run` then takes over.
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


if os.path.dirname(os.path.abspath(sys.argv[0])) == ROOT:  # a script of ours, not a test or a notebook that imports one
    signal.signal(signal.SIGINT, leave)
