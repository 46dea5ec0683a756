"""Prompts from the command line or a file."""

import argparse
from pathlib import Path

from support.command import UserError


def read_prompts(settings: argparse.Namespace) -> list[str]:
    """One prompt, or those of the prompt file: a line each, empty lines left out.

    Raises UserError if the file is missing, not UTF-8 or empty, OSError if it cannot be read.
    """
    if settings.prompt_file is None:
        return [settings.prompt or ""]
    path = Path(settings.prompt_file)
    if not path.is_file():
        raise UserError(f"--prompt-file {path}: no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file {path} is not UTF-8 text (byte {error.start})") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"--prompt-file {path} holds no prompt")
    return prompts
