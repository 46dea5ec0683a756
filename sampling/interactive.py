"""A conversation: prompt after prompt, with settings that change on the way."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from sampling.prompts import unescape
from support.command import Parser, UserError, flag_of, one_line, user_errors

# What /NAME VALUE may change.
CHANGEABLE = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")


def conversation(settings: argparse.Namespace, parser: Parser) -> Iterator[tuple[argparse.Namespace, str]]:
    """Ask for prompts until Ctrl-D or /quit: yields each with the settings of that moment.

    `/temperature 0.5` changes a setting, `/temperature` alone goes back to its default. Raises UserError if standard
    input is not UTF-8.
    """
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  line editing and history for input()
    print("Type a prompt. Ctrl-C ends a text, Ctrl-D or /quit ends all; /help shows what can be set.", file=sys.stderr)
    while True:
        try:
            with user_errors("standard input is not UTF-8 text: "):
                line = input("> ")
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        command = line.strip()
        if command == "/quit":
            return
        if command in ("/", "/help"):
            print(*(f"/{flag_of(name)[2:]} {getattr(settings, name)}" for name in CHANGEABLE), file=sys.stderr)
            print("/NAME VALUE changes a setting, /NAME alone takes its default, /quit ends.", file=sys.stderr)
        elif command[:1] == "/" and command[1:].partition(" ")[0].replace("-", "_").isidentifier():
            with one_answer():
                settings = changed(settings, parser, command[1:])
        else:
            yield settings, unescape(line)


@contextlib.contextmanager
def one_answer() -> Iterator[None]:
    """Within it, a mistake or Ctrl-C ends one answer, not the conversation."""
    try:
        yield
    except (UserError, UserWarning) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print()


def changed(settings: argparse.Namespace, parser: Parser, line: str) -> argparse.Namespace:
    """The settings after `NAME VALUE`, within the bounds of the flag --NAME; after `NAME`, with that flag's default.

    Raises UserError if there is no such setting or the value is out of bounds.
    """
    name, _, value = line.partition(" ")
    key = name.replace("-", "_")
    if key not in CHANGEABLE:
        raise UserError(f"/{name} is not a setting (/help shows them)")
    result = argparse.Namespace(**vars(settings) | {key: parser.get_default(key)})
    if value:
        parser.parse_args([f"{flag_of(key)}={unescape(value)}"], result)
    return result
