r"""Prompts from the command line, a file or a conversation.

On the command line \n is a new line, \t a tab and \\ a backslash; anything else stays as typed.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from support.command import Parser, UserError, flag_of, user_errors

SEPARATOR = re.compile(r"^---(?:\n|\Z)", re.MULTILINE)  # a line of a prompt file
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
# What /NAME VALUE may change in a conversation.
CHANGEABLE = {"max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop"}


def unescape(text: str) -> str:
    r"""Replace `\n`, `\t` and `\\`."""
    return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], text)


def read_text(flag: str, path: str) -> str:
    """The text of the file that a flag names. Raises UserError if it is missing or not UTF-8."""
    if not Path(path).is_file():
        raise UserError(f"{flag} {path}: no such file")
    with user_errors(f"{flag} {path} is not UTF-8 text: "):
        return Path(path).read_text(encoding="utf-8-sig")


def read_prompts(settings: argparse.Namespace) -> list[str]:
    """One prompt (`-` reads standard input), or those of the prompt file.

    With lines of `---` in the file, the prompts stand between them; without, each line that is not empty is one.
    Raises UserError if the file is missing, not UTF-8 or empty, OSError if it cannot be read.
    """
    if settings.prompt == "-":
        return [sys.stdin.read().removesuffix("\n")]
    if settings.prompt_file is None:
        return [unescape(settings.prompt or "")]
    text = read_text("--prompt-file", settings.prompt_file)
    prompts = SEPARATOR.split(text) if SEPARATOR.search(text) else text.split("\n")
    prompts = [prompt.removesuffix("\n") for prompt in prompts]
    if not any(prompts):
        raise UserError(f"--prompt-file {settings.prompt_file} holds no prompt")
    return list(filter(None, prompts))


def converse(settings: argparse.Namespace, parser: Parser, answer: Callable[[argparse.Namespace, str], None]) -> None:
    """Read a prompt, let `answer` write the text, and again, until Ctrl-D; Ctrl-C ends a text.

    `/temperature 0.5` changes a setting, `/` alone lists them.
    """
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  line editing and history for input()
    print("Type a prompt. /temperature 0.5 changes a setting, / lists them; Ctrl-C ends a text, Ctrl-D all.")
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt) as end:
            print()
            if isinstance(end, EOFError):
                return
            continue
        try:
            if line.startswith("/"):
                settings = changed(settings, parser, line[1:])
            else:
                answer(settings, unescape(line))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


def changed(settings: argparse.Namespace, parser: Parser, line: str) -> argparse.Namespace:
    """The settings after `NAME VALUE`, within the bounds of the flag --NAME. Raises UserError if there is none."""
    name, _, value = line.strip().partition(" ")
    key = name.replace("-", "_")
    if key not in CHANGEABLE:
        shown = "  ".join(f"/{key.replace('_', '-')} {getattr(settings, key)}" for key in sorted(CHANGEABLE))
        raise UserError(f"/{name} is no setting: {shown}" if name else f"the settings: {shown}")
    fresh = argparse.Namespace(**vars(settings))
    if key == "stop":
        value, fresh.stop = unescape(value), []
    return parser.parse_args([f"{flag_of(key)}={value}"], fresh)
