"""Where texts go: stdout, as they are made."""

import argparse
import sys

from sampler import SlidingWindow
from sampling.beam import beam_search
from sampling.text_stream import TextStream, suppressed
from support.command import visible
from tokenizer import Tokenizer


class Output:
    """Text to stdout, at once. On a terminal, control characters are shown; what goes to stderr gets its own lines."""

    def __init__(self):
        self.open_line = False

    def write(self, text: str) -> None:
        sys.stdout.write(visible(text, sys.stdout))
        sys.stdout.flush()
        self.open_line = not text.endswith("\n") if text else self.open_line

    def end_line(self) -> None:
        """Begin a new line, if stdout and stderr share a terminal."""
        if self.open_line and sys.stdout.isatty() and sys.stderr.isatty():
            self.write("\n")


def search(settings: argparse.Namespace, window: SlidingWindow, tokenizer: Tokenizer, prompt: str) -> int:
    """Print the texts that beam search finds, best first; returns how many tokens the longest has."""

    def follow(stream: TextStream, token: int) -> tuple[TextStream, bool]:
        stream = stream.fork()
        stream.add(token)
        return stream, stream.stopped

    start = TextStream(tokenizer, settings.stop)
    options = (settings.max_new_tokens, settings.beams, settings.length_penalty, suppressed(tokenizer), follow, start)
    found = beam_search(window, *options)
    for rank, best in enumerate(found[: settings.n_best], start=1):
        if settings.n_best > 1:
            scores = f"score {best.score(settings.length_penalty):.4f}, log-probability {best.log_probability:.4f}"
            Output().write(f"--- text {rank} ({scores})\n")
        stream = TextStream(tokenizer, settings.stop)
        Output().write(prompt + "".join(map(stream.add, best.tokens)) + stream.finish() + "\n")
    return max(len(one.tokens) for one in found)
