"""Where texts go: stdout, a single one as it is made, several one after the other at the end."""

import argparse
import sys
import time
from collections.abc import Iterator

from sampler import SlidingWindow
from sampling.beam import beam_search
from sampling.text_stream import TextStream, suppressed
from support.command import visible
from tokenizer import Tokenizer

PIECE = 0.02  # seconds: text that comes faster than the eye sees is shown in pieces, because each one costs time


def write(text: str) -> None:
    """Text to stdout, at once; on a terminal, control characters are spelled out."""
    print(visible(text), end="", flush=True)


def write_header(words: str) -> None:
    """A line above one of several texts: to stderr if stdout is a pipe or file, which then has the texts alone."""
    print(f"--- {words}", file=sys.stdout if sys.stdout.isatty() else sys.stderr)


def print_samples(steps: Iterator[list[int]], streams: list[TextStream], prompts: list[str], seed: int) -> int:
    """Print the texts of a batch, until all have ended; returns how many tokens they have. A single one is printed as
    it is made.

    steps: the next token of every row, as `sampler.generate` yields them; streams make text of each row's. prompts: how
    each text begins. seed: of the first text; each further one has the next.
    """
    single, count = len(prompts) == 1, 0
    texts = [[prompt] for prompt in prompts]  # the pieces that are not printed yet
    if single:
        write(texts[0].pop())
    written = time.perf_counter()
    for tokens in steps:
        for text, stream, token in zip(texts, streams, tokens, strict=True):
            count += not stream.stopped
            text.append(stream.add(token))
        if single and time.perf_counter() - written >= PIECE:
            write("".join(texts[0]))
            texts[0].clear()
            written = time.perf_counter()
        if all(stream.stopped for stream in streams):
            break
    for row, (text, stream) in enumerate(zip(texts, streams, strict=True)):
        if not single:
            write_header(f"text {row + 1} (seed {seed + row})")
        write("".join(text) + stream.finish() + "\n")
    return count


def print_beams(settings: argparse.Namespace, window: SlidingWindow, tokenizer: Tokenizer, prompt: str) -> int:
    """Print the texts that beam search finds, best first; returns how many tokens the longest has."""

    def ended(tokens: list[int]) -> bool:
        """Whether the last token ends the text: a character of a stop string has at most four bytes, or tokens."""
        if tokens[-1] == tokenizer.eos_id:
            return True
        return any(stop in tokenizer.decode(tokens[-4 * len(stop) :]) for stop in settings.stop)

    texts = beam_search(window, settings.max_new_tokens, ended, settings.length_penalty, suppressed(tokenizer))
    for rank, text in enumerate(texts[: settings.n_best], start=1):
        if settings.n_best > 1:
            score = text.score(settings.length_penalty)
            write_header(f"text {rank} (score {score:.4f}, log-probability {text.log_probability:.4f})")
        stream = TextStream(tokenizer, settings.stop)
        write(prompt + "".join(map(stream.add, text.tokens)) + stream.finish() + "\n")
    return max(len(text.tokens) for text in texts)
