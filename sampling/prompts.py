r"""Prompts from the command line, standard input or a file.

On the command line \n is a new line, \t a tab and \\ a backslash; anything else stays as typed.
"""

import argparse
import re
import sys
from pathlib import Path

from corpora.texts import read_blocks
from support.command import UserError, user_errors

ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def unescape(text: str) -> str:
    r"""Replace `\n`, `\t` and `\\`."""
    return re.sub(r"\\[nt\\]", lambda match: ESCAPES[match[0]], text)


def read_text(flag: str, path: str) -> str:
    """The text of the file that a flag names. Raises UserError if it is not UTF-8 or empty, OSError as `open` does."""
    text = "".join(read_blocks(Path(path)))
    if not text.strip("\n"):
        raise UserError(f"{flag} {path} holds no text")
    return text


def read_prompts(settings: argparse.Namespace) -> list[str]:
    """One prompt (`-` reads standard input), or those of the prompt file.

    With lines of `---` in the file, the prompts stand between them; without, each line that is not empty is one.
    Raises UserError if they are not UTF-8 or the file is empty, OSError if they cannot be read.
    """
    if settings.prompt == "-":
        with user_errors("--prompt -: standard input is not UTF-8 text: "):
            return [sys.stdin.read().removeprefix("\ufeff").removesuffix("\n")]
    if settings.prompt_file is None:
        return [unescape(settings.prompt or "")]
    text = read_text("--prompt-file", settings.prompt_file)
    parts = re.split(r"^---(?:\n|\Z)", text, flags=re.MULTILINE)
    prompts = parts if len(parts) > 1 else text.split("\n")
    prompts = [prompt.removesuffix("\n") for prompt in prompts if prompt.strip("\n")]
    if not prompts:
        raise UserError(f"--prompt-file {settings.prompt_file} holds no prompt")
    return prompts
