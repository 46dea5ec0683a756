"""What every command shares: flag types, errors of one line, exit codes, signals.

Exit codes: 0 done, 1 file or I/O trouble (OSError), 2 bad input or flags (UserError), 3 training diverged or the
model gave non-finite numbers (FloatingPointError), 129 / 130 / 143 interrupted by SIGHUP / SIGINT / SIGTERM
(Interrupted). Any other exception is a bug and keeps its traceback.
"""

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from math import inf, nan
from types import ModuleType
from typing import NoReturn

from support import start


class UserError(Exception):
    """What the user gave is wrong; the message says what, and what to do about it."""


class Interrupted(Exception):
    """The run was stopped by a signal, after its state was saved; `signum` gives the exit code 128 + signum."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def user_errors(prefix: str = "") -> Iterator[None]:
    """Turn a ValueError into a UserError that begins with `prefix`.

    For the one call that checks what a user gave: around more, it would hide bugs.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from None


def optional_package(module: str, purpose: str) -> ModuleType:
    """A module of a package that only `purpose` needs; UserError that says how to get it if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be used ({one_line(error)})"
        raise UserError(f"{purpose} needs a package that {why}: pip install {package}") from None


class StopSignal:
    """Within it, the first SIGINT, SIGTERM or SIGHUP (a terminal that closes; Windows has none) is only noted, so that
    the step can be finished and saved. What is ignored stays ignored, as SIGHUP by nohup, but not of several processes:
    torchrun sends it even then.

    A second SIGINT raises KeyboardInterrupt at once. shielded: when an exception ends it, SIGTERM is ignored from then
    on: torchrun sends it as soon as one process has failed, and the others have yet to say why they leave.
    """

    def __init__(self, shielded: bool = False):
        self.signum = 0
        self.shielded = shielded

    def __enter__(self) -> "StopSignal":
        signals = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        taken = {s for s in signals if self.shielded or signal.getsignal(s) != signal.SIG_IGN}
        self.earlier = {s: signal.signal(s, self.note) for s in taken}
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind and self.shielded:
            self.earlier[signal.SIGTERM] = signal.SIG_IGN
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)

    def note(self, signum: int, _frame) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


def interruptible(
    work: Callable[[], object], seconds: float = inf, hopeless: Callable[[], bool] = lambda: False
) -> object:
    """The result of `work()`, which may stay where Python does not notice Ctrl-C: in a library, in a look-up.

    Another thread does the work, and KeyboardInterrupt ends the wait, as does TimeoutError after so many seconds or as
    soon as it is hopeless. That thread ends with the process.
    """
    future = Future()

    def fill() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive():
        if time.monotonic() > deadline or hopeless():
            raise TimeoutError
        thread.join(0.1)
    return future.result()


# --- Flags -------------------------------------------------------------------------------------------------------


# What other programs call our flags, where the letters alone do not tell.
SYNONYMS = {"--learning-rate": "--lr", "--max-iters": "--steps", "--iters": "--steps", "--block-size": "--max-seq"}
SYNONYMS |= {"--temp": "--temperature", "--length": "--max-new-tokens", "--lora": "--lora-rank"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean NAME?` with the known name that is nearest to a word, or nothing if none is near."""
    known, word = list(known), word[:80].lower().replace("_", "-")
    near = [SYNONYMS[word]] if SYNONYMS.get(word) in known else difflib.get_close_matches(word, known, 1)
    return f": did you mean {near[0]}?" if near else ""


class Help(argparse.RawDescriptionHelpFormatter):
    """Of every flag, --help shows the default, and as its value what its type names."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hidden = action.const is True or action.default in (None, [], argparse.SUPPRESS)  # True: of store_true
        return action.help if hidden or "(default: " in action.help else f"{action.help} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "metavar", None) or super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, for `run` to print, and name a near miss.

    It takes no abbreviations.
    """

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=Help)

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """The argparse.Action of each setting by its name, without --help."""
        return {action.dest: action for action in self._actions if action.dest != "help"}

    def parse_args(self, arguments: list[str] | None = None, namespace: argparse.Namespace | None = None):
        for word in sys.argv[1:] if arguments is None else arguments:
            if word.startswith("--") and word.endswith("=--"):  # which argparse would drop, and hand an empty list on
                self.error(f"{word[:-3]}: must not be --")
        settings, unknown = self.parse_known_args(arguments, namespace)
        if unknown:
            name, known = unknown[0].partition("=")[0], self._option_string_actions
            is_text = not name.startswith("-") and "--glob" in known
            advice = f": for a text, --data {typed(unknown[:1])}" if is_text else did_you_mean(name, known)
            self.error(f"{name} is not a flag{advice}")
        return settings

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (--help lists the flags)")


def flag_of(name: str) -> str:
    """`max_seq` -> `--max-seq`."""
    return "--" + name.replace("_", "-")


def path_name(value: str) -> str:
    """A flag type: the name of a file, in which `~` is the home folder. One that begins with a dash gets ./ before it,
    so that no command takes it for a flag."""
    return os.path.join("." if value.startswith("-") else "", os.path.expanduser(text(value)))


def text(value: str) -> str:
    """A flag type: any text but an empty one."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return value


def one_of(*names: str) -> Callable[[str], str]:
    """A flag type: one of these names."""

    def parse(value: str) -> str:
        if value not in names:
            near = did_you_mean(value, names)
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, not {value[:40]!r}{near}")
        return value

    parse.metavar = "|".join(names)
    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """A flag type: a whole number from low to high."""
    return bounded(int, "N", low, high)


def number(low: float = -inf, high: float = inf, above: float = -inf, below: float = inf) -> Callable[[str], float]:
    """A flag type: a finite number; low and high are inclusive bounds, above and below exclusive ones."""
    return bounded(float, "X", low, high, above, below)


def bounded(kind: type, metavar: str, low: float, high: float, above: float = -inf, below: float = inf) -> Callable:
    """The flag type behind `whole` and `number`."""
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    limits = [f"{word} {bound}" for word, bound in bounds.items() if abs(bound) < inf]
    expected = ", ".join(["a whole number" if kind is int else "a finite number", *limits])

    def parse(value: str) -> int | float:
        try:
            parsed = kind(value)
        except ValueError:
            parsed = nan
        if not (low <= parsed <= high and above < parsed < below):  # as neither nan nor an infinity is
            raise argparse.ArgumentTypeError(f"must be {expected}, not {value[:40]!r}")
        return parsed

    parse.metavar = metavar
    return parse


def typed(words: Iterable[str]) -> str:
    """A command line of these words, which can be typed into the system's shell; Windows knows no single quotes."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def given_flags(parser: Parser, arguments: list[str] | None) -> dict[str, object]:
    """The settings that a command line gives, and only those: whatever replaces a sentinel was given."""
    sentinel = []  # a list, because argparse appends to it (a copy) for flags that may be repeated
    settings = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(parser.flags, sentinel)))
    return {name: value for name, value in vars(settings).items() if value is not sentinel}


# --- Output ---------------------------------------------------------------------------------------------------------

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all of them but newline and tab


def visible(text: str) -> str:
    """The text as it can be written to stdout: on a terminal, control characters are spelled out.

    Text from others (a corpus, a model) could otherwise steer the terminal: set the clipboard or the window's title,
    stop its output. Newline and tab stay, and into a pipe or file all goes as it is.
    """
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text) if sys.stdout.isatty() else text


# --- Running -----------------------------------------------------------------------------------------------------

MAX_MESSAGE = 1000  # characters


def one_line(error: BaseException | str) -> str:
    """A text, or an exception's, on one line, control characters (which a file may have put there) spelled out."""
    words = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    words += getattr(error, "kept", "")  # of a training run: what is saved
    words = words if len(words) <= MAX_MESSAGE else f"{words[: MAX_MESSAGE // 2]} … {words[-MAX_MESSAGE // 4 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(words.split()))


def open_streams() -> None:
    """Make stdin, stdout and stderr fit for text: in UTF-8 where they are redirected, whatever the locale's encoding.

    PYTHONIOENCODING and PYTHONUTF8 are the user's own choice. Closed streams are empty; characters that
    an encoding lacks are shown as \\u00e9. A line appears when it is printed, into a pipe or a file too.
    """
    chosen = os.environ.keys() & {"PYTHONIOENCODING", "PYTHONUTF8"}
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # the null device takes the free number, which a later file would get otherwise
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # not replaced by a test or a notebook
            encoding = None if chosen or stream.isatty() else "utf-8"
            errors = "backslashreplace" if number else "strict"
            stream.reconfigure(encoding=encoding, errors=errors, line_buffering=number > 0)


def out_of_memory(error: Exception) -> bool:
    """Whether this is one of the ways in which Python, numpy and PyTorch say that there is not enough memory."""
    signs = ("OutOfMemoryError", "DefaultCPUAllocator", "Cannot allocate memory", "Storage size calculation overflowed")
    signs += ("could not create a primitive",)  # oneDNN
    return isinstance(error, MemoryError) or any(sign in repr(error) for sign in signs)


def run(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and leave the process with the exit code that its outcome calls for."""
    code, message = 1, None
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        open_streams()
        # one line, without the place in the source
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {one_line(message)}", file=sys.stderr)
        code = command() or 0
        sys.stdout.flush()
    except Interrupted as stop:
        code, message = 128 + stop.signum, f"interrupted: {stop}"
    except KeyboardInterrupt:
        code, message = 128 + signal.SIGINT, "\ninterrupted" if sys.stderr.isatty() else "interrupted"  # after ^C
    except FloatingPointError as error:
        code, message = 3, f"error: {one_line(error)}"
    except (UserError, UserWarning) as error:  # PYTHONWARNINGS=error makes an error of a warning
        code, message = 2, f"error: {one_line(error)}"
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # or the last flush of stdout fails once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        closed = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)
        if closed and not hasattr(error, "kept"):  # whoever read our output has enough
            code = 0
        else:
            message = f"error: {one_line(error)}"
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        smaller = "--batch-size, --max-seq or --embed-dim in training, --num-samples or --beams in sampling"
        message = f"error: not enough memory for this; try a smaller {smaller}{getattr(error, 'kept', '')}"
    if start.IS_SCRIPT:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends: a second Ctrl-C has nothing left to stop
    if message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr)
    raise SystemExit(code)
