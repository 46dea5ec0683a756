"""What every command here shares: flags made from a dataclass, one-line errors, exit codes.

A command keeps its settings in a frozen dataclass whose fields are made with `setting`. The field holds the one
default, the help text and the bounds; `add_flags` turns it into `--kebab-case` flags and `validate` checks the values.

Exit codes: 0 done, 1 file or I/O trouble (OSError), 2 bad input or flags (ValueError), 3 training diverged or the
model gave non-finite numbers (FloatingPointError), 130 / 143 interrupted by SIGINT / SIGTERM (Interrupted).
"""

import argparse
import contextlib
import dataclasses
import math
import os
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable


class Interrupted(Exception):
    """The run was stopped by a signal, after its state was saved; `signum` gives the exit code 128 + signum."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class StopSignal:
    """Within it, the first SIGINT or SIGTERM is only noted, so that the step can be finished and saved.

    A second SIGINT raises KeyboardInterrupt at once.
    """

    def __init__(self):
        self.signum = 0

    def __enter__(self) -> "StopSignal":
        self.earlier = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)

    def note(self, signum: int, _frame) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


def setting(default, help: str, *, group: str, low=None, high=None, above=None, below=None, choices=None):
    """A dataclass field that is also a flag.

    low and high are inclusive bounds, above and below exclusive ones; every float must be finite besides.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, "group": group, **bounds})


def flag_of(name: str) -> str:
    """`max_seq` -> `--max-seq`."""
    return "--" + name.replace("_", "-")


def value_type(annotation) -> type:
    """The plain type behind an annotation: `int | None` -> int, `tuple[str, ...]` -> str, `float` -> float."""
    arguments = [a for a in typing.get_args(annotation) if a not in (type(None), ...)]
    if isinstance(annotation, types.UnionType):
        return value_type(arguments[0])
    return arguments[0] if arguments else annotation


def check_value(name: str, value, kind: type, metadata) -> None:
    """Raise a ValueError that names the flag if `value` is of another type or outside the bounds of its field."""
    flag = flag_of(name)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{flag} must be a value of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag} must be a finite number, not {value}")
    for key, holds, words in (
        ("low", lambda bound: value >= bound, "at least"),
        ("above", lambda bound: value > bound, "more than"),
        ("high", lambda bound: value <= bound, "at most"),
        ("below", lambda bound: value < bound, "less than"),
    ):
        bound = metadata.get(key)
        if bound is not None and not holds(bound):
            raise ValueError(f"{flag} must be {words} {bound}, not {value}")
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(f"{flag} must be one of {', '.join(choices)}, not {value!r}")
    if value == "":
        raise ValueError(f"{flag} must not be empty")


def validate(settings) -> None:
    """Check every field of a settings dataclass against its type and bounds; call it from `__post_init__`."""
    check_given(type(settings), {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def check_given(settings_class: type, given: dict) -> None:
    """`validate` for some fields of a settings dataclass, before there is one."""
    annotations = typing.get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        value = given.get(field.name, field.default)
        if not field.metadata or (value is None and field.default is None):
            continue
        for item in value if isinstance(field.default, tuple) and isinstance(value, tuple) else (value,):
            check_value(field.name, item, value_type(annotations[field.name]), field.metadata)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are ValueErrors, for `run` to print."""

    def __init__(self, description: str, **options):
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')} (--help lists the flags)")


def add_flags(parser: argparse.ArgumentParser, settings_class: type, varies: frozenset[str] = frozenset()) -> None:
    """Add a flag for each `setting` of `settings_class`, under its group's heading.

    A flag that is not given leaves no trace in the parsed namespace, so that the caller can tell "not given" from
    "given as the default". Fields named in `varies` get their default from the preset, and their help says so.
    """
    groups = {}
    annotations = typing.get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        if not field.metadata:
            continue
        title = field.metadata["group"]
        group = groups.setdefault(title, parser.add_argument_group(title) if title not in groups else None)
        kind = value_type(annotations[field.name])
        options = {"dest": field.name, "default": argparse.SUPPRESS}
        default = f"default: {field.default}" + (", other presets differ" if field.name in varies else "")
        if field.default is None or field.default == () or kind is bool:
            default = ""
        options["help"] = f"{field.metadata['help']}{f' ({default})' if default else ''}".replace("%", "%%")
        if kind is bool:
            # --compile / --no-compile where the default depends on the machine, a bare switch elsewhere
            options["action"] = argparse.BooleanOptionalAction if field.default is None else "store_true"
        else:
            options["type"] = kind
            options["metavar"] = {int: "N", float: "X"}.get(kind, field.name.upper().replace("_", "-"))
            if field.metadata["choices"]:
                options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
            if isinstance(field.default, tuple):
                several = {"action": "extend", "nargs": "+"}  # --books 1 2 3; texts one by one: --stop a --stop b
                options |= several if kind is int else {"action": "append"}
        group.add_argument(flag_of(field.name), **options)


def given_flags(namespace: argparse.Namespace) -> dict:
    """The settings that the user gave, as keyword arguments of the settings class."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in vars(namespace).items()}


def one_line(error: BaseException) -> str:
    """An exception's text on one line, control characters (which a file may have put there) spelled out."""
    words = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(words.split()))


def print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """`warnings.showwarning` for commands: one line on stderr, without the place in the source."""
    print(f"warning: {one_line(message)}", file=sys.stderr)


def open_streams() -> None:
    """Make stdout and stderr fit to print on: closed ones swallow what is printed, ASCII-only ones show \\u00e9.

    A line appears when it is printed, into a pipe or a file too.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the free number, which some later file would get otherwise
        if getattr(sys, name) is None and number:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if hasattr(getattr(sys, name), "reconfigure") and number:
            getattr(sys, name).reconfigure(errors="backslashreplace", line_buffering=True)


def silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush of what could not be written is silent."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def out_of_memory(error: Exception) -> bool:
    """Whether this is one of the ways in which Python, numpy and PyTorch say that there is not enough memory."""
    words = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in words
        or "Storage size calculation overflowed" in words
    )


def run(command: Callable[[], int | None]) -> typing.NoReturn:
    """Run a command and leave the process with the exit code that its outcome calls for."""
    open_streams()
    warnings.showwarning = print_warning
    code, message = 1, None
    try:
        code = command() or 0
        sys.stdout.flush()
    except Interrupted as stop:
        code, message = 128 + stop.signum, f"interrupted: {stop}"
    except KeyboardInterrupt:
        code, message = 128 + signal.SIGINT, "interrupted"
    except FloatingPointError as error:
        code, message = 3, f"error: {one_line(error)}"
    except ValueError as error:
        code, message = 2, f"error: {one_line(error)}"
    except BrokenPipeError:  # whoever read our output has enough
        silence_stdout()
        code = 0
    except OSError as error:
        silence_stdout()
        message = f"error: {one_line(error)}"
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        smaller = "--batch-size, --max-seq or --embed-dim in training, --num-samples or --beams in sampling"
        message = f"error: not enough memory for this; try a smaller {smaller}"
    if message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr)
    raise SystemExit(code)
