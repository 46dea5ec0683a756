"""Where texts go: stdout, as they are made."""

import argparse
import io
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
        sys.stdout.write(visible(text))
        sys.stdout.flush()
        self.open_line = not text.endswith("\n") if text else self.open_line

    def end_line(self) -> None:
        """Begin a new line, if stdout and stderr share a terminal."""
        if self.open_line and sys.stdout.isatty() and sys.stderr.isatty():
            self.write("\n")

    def header(self, words: str) -> None:
        """A line above one of several texts: to stderr if stdout is a pipe or file, which then has the texts alone."""
        print(f"--- {words}", file=sys.stdout if sys.stdout.isatty() else sys.stderr)


class Texts:
    """The texts of a batch: a single one is printed as it is made, several one after the other at the end."""

    def __init__(self, tokenizer: Tokenizer, prompts: list[str], stops: list[str]):
        """prompts: how each text begins. stops: see `TextStream`."""
        self.count = 0  # of tokens, without those after the end of a text
        self.output = Output()
        self.streams = [TextStream(tokenizer, stops) for _ in prompts]
        self.sinks = [self.output] if len(prompts) == 1 else [io.StringIO() for _ in prompts]
        for sink, prompt in zip(self.sinks, prompts, strict=True):
            sink.write(prompt)

    @property
    def ended(self) -> bool:
        """Whether every text has come to its end."""
        return all(stream.stopped for stream in self.streams)

    def add(self, tokens: list[int]) -> None:
        """Take in the next token of every text."""
        for sink, stream, token in zip(self.sinks, self.streams, tokens, strict=True):
            self.count += not stream.stopped
            sink.write(stream.add(token))

    def finish(self, seed: int) -> None:
        """Print the rest; seed: of the first text, each further one has the next."""
        for row, (sink, stream) in enumerate(zip(self.sinks, self.streams, strict=True)):
            sink.write(stream.finish() + "\n")
            if sink is not self.output:
                self.output.header(f"text {row + 1} (seed {seed + row})")
                self.output.write(sink.getvalue())


def search(settings: argparse.Namespace, window: SlidingWindow, tokenizer: Tokenizer, prompt: str) -> int:
    """Print the texts that beam search finds, best first; returns how many tokens the longest has."""

    def follow(stream: TextStream, token: int) -> tuple[TextStream, bool]:
        stream = stream.fork()
        stream.add(token)
        return stream, stream.stopped

    start, output = TextStream(tokenizer, settings.stop), Output()
    options = (settings.max_new_tokens, settings.beams, settings.length_penalty, suppressed(tokenizer), follow, start)
    texts = beam_search(window, *options)
    for rank, text in enumerate(texts[: settings.n_best], start=1):
        if settings.n_best > 1:
            score = text.score(settings.length_penalty)
            output.header(f"text {rank} (score {score:.4f}, log-probability {text.log_probability:.4f})")
        stream = TextStream(tokenizer, settings.stop)
        output.write(prompt + "".join(map(stream.add, text.tokens)) + stream.finish() + "\n")
    return max(len(text.tokens) for text in texts)
