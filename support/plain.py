"""Plain data from a file that anyone may have written: JSON of bounded size, fields of the expected types."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

MAX_JSON = 2**24  # characters of JSON that is parsed at all
MAX_LINE, MAX_LINES = 60_000, 10_000_000  # bytes of JSON lines that are read: of one, of all
MAX_MARKS = 2**20  # of { [ , : in it: each may become an object that takes a hundred bytes


def parse_json(text: str) -> object:
    """`json.loads` within bounds of memory and depth. Raises ValueError if the text is too large or damaged."""
    if len(text) > MAX_JSON or sum(map(text.count, "{[,:")) > MAX_MARKS:
        raise ValueError("its JSON is too large")
    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its JSON is damaged ({error})") from None


def read_lines(path: Path | None, read: Callable[[object], dict]) -> list[dict]:
    """What `read` makes of each line of a file of JSON lines, without those that are damaged or that it refuses; empty
    if there is no such file."""
    found = []
    if path is None or not path.is_file():
        return found
    with open(path, "rb") as file:
        lines = file.read(MAX_LINES).splitlines()
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
            if len(line) <= MAX_LINE:
                found.append(read(parse_json(line.decode())))
    return found


def finite(number: str) -> float:
    """The number. Raises ValueError for NaN and infinities, which Python's JSON knows and nobody else's."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is not a number")
    return float(number)


def check_fields(value: object, kinds: dict[str, type | tuple[type, ...]]) -> None:
    """Raise ValueError unless `value` is a dictionary in which each of these fields is of its kind."""
    if not isinstance(value, dict):
        raise ValueError("a part of it is not a dictionary")
    for name, kind in kinds.items():
        if name not in value or type(value[name]) not in (kind if isinstance(kind, tuple) else (kind,)):
            raise ValueError(f"its entry {name!r} is missing or wrong")


def is_plain(value: object) -> bool:
    """Whether it is text, a finite number of sensible size, a truth value, or a dictionary of these."""
    if isinstance(value, dict):
        return all(not isinstance(inner, dict) and is_plain(inner) for inner in value.values())
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) < 2**63)
