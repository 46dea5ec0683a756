r"""Sample text from a trained checkpoint.

examples:
  python generate.py --prompt "ROMEO:"
  python generate.py --prompt "ROMEO:" --beams 4 --stop "\n\n"
  python generate.py --prompt "ROMEO:" --top-k 20 --top-p 0.9 --explain --max-new-tokens 5
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

import argparse
import sys
import time
from pathlib import Path

import torch

from formats.checkpoint import Tokenizer, load_model
from sampler import Sampling, SlidingWindow, generate, row_generators
from sampling.beam import beam_search
from sampling.explain import Explainer
from sampling.fast_step import FastStep
from sampling.prompts import read_prompts
from sampling.text_stream import TextStream
from support.command import Parser, UserError, number, run, text, user_errors, whole
from support.device import pick_device
from training.lora import apply_adapter, merge_adapters


def make_parser() -> Parser:
    """Every flag of generate.py, with its one default."""
    parser = Parser(__doc__)
    add = parser.add_argument_group("input").add_argument
    add("--checkpoint", type=text, default="checkpoints/tiny_decoder.pth", help="the model to sample from")
    add("--lora", type=text, help="an adapter of that model, from main.py --lora-rank")
    add("--prompt", help="how the text begins; without it, as a new line does")
    add("--prompt-file", type=text, help="a UTF-8 file with a prompt on each line, for one batch")
    add = parser.add_argument_group("length").add_argument
    add("--max-new-tokens", type=whole(0, 10**9), default=500, help="how many tokens to add")
    add("--stop", type=text, action="append", default=[], help=r"end before this text (\n: a new line); repeatable")
    add("--num-samples", type=whole(1, 4096), default=1, help="how many texts for each prompt, all in one batch")
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=number(0, 1e6), default=0.8, help="below 1 bolder, above 1 wilder, 0 the likeliest token")
    add("--top-k", type=whole(0, 10**9), default=0, help="choose among the k likeliest tokens, 0 among all")
    nucleus = "choose among the fewest likeliest tokens that have this probability together"
    add("--top-p", type=number(above=0, high=1), default=1.0, help=nucleus)
    add("--min-p", type=number(0, 1), default=0.0, help="choose among tokens at least this share as likely as the best")
    add("--repetition-penalty", type=number(1e-3, 1e6), default=1.0, help="above 1: tokens in the text are less likely")
    seeds = "same seed, same text; text i of several has seed + i (default: random, and shown)"
    add("--seed", type=whole(0, 2**63 - 1), help=seeds)
    add("--explain", action="store_true", help="show on stderr how the filters treat each token's candidates")
    add = parser.add_argument_group("beam search").add_argument
    add("--beams", type=whole(0, 1024), default=0, help="search for the likeliest text with so many beams; 0 samples")
    add("--n-best", type=whole(1, 1024), default=1, help="how many of the texts found to print, with scores")
    lengths = "divide log-probabilities by length to this power: 0 favours short texts"
    add("--length-penalty", type=number(-100, 100), default=1.0, help=lengths)
    add = parser.add_argument_group("machine").add_argument
    stride = "tokens that a full window moves at once: 1 is exact and slow (default: half the window)"
    add("--stride", type=whole(1, 2**14), help=stride)
    add("--device", type=text, default="auto", help="cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu")
    return parser


def parse_settings(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings that a command line asks for. Raises UserError that names the flag if they do not go together."""
    parser = make_parser()
    settings = parser.parse_args(arguments)
    settings.stop = tuple(stop.replace("\\n", "\n") for stop in settings.stop)  # a newline is hard to type
    if 0 < settings.temperature < 1e-6:
        raise UserError(f"--temperature must be 0 or at least 1e-6, not {settings.temperature}")
    if settings.prompt is not None and settings.prompt_file is not None:
        raise UserError("--prompt and --prompt-file exclude each other")
    if settings.beams and (settings.num_samples > 1 or settings.prompt_file or settings.explain):
        raise UserError("--beams searches for one prompt: leave --num-samples, --prompt-file and --explain out")
    if settings.n_best > max(1, settings.beams):
        raise UserError(f"--n-best {settings.n_best} needs at least as many --beams, not {settings.beams}")
    if settings.explain and (settings.num_samples > 1 or settings.prompt_file):
        raise UserError("--explain shows one text: leave --num-samples and --prompt-file out")
    return settings


def write(text: str) -> None:
    """Text to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def sample(settings: argparse.Namespace, window: SlidingWindow, tokenizer: Tokenizer, prompts: list[str]) -> int:
    """Print a text for every row of the window; returns how many tokens were made.

    A single text appears as it is made, several one after the other at the end.
    """
    filters = Sampling(
        settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty
    )
    streams = [TextStream(tokenizer, settings.stop) for _ in prompts]
    watch = Explainer(tokenizer) if settings.explain else None
    generators = row_generators(settings.seed, len(prompts))
    alone = len(prompts) == 1
    made = 0
    if alone:
        write(prompts[0])
    for chosen in generate(window, settings.max_new_tokens, generators, filters, tokenizer.special_ids, watch):
        made += sum(not stream.stopped for stream in streams)
        pieces = [stream.add(token) for stream, token in zip(streams, chosen, strict=True)]
        if alone and pieces[0]:
            write(pieces[0])
        if all(stream.stopped for stream in streams):
            break
    rests = [stream.finish() for stream in streams]
    if alone:
        write(rests[0] + "\n")
    else:
        for row, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
            write(f"--- text {row + 1} (seed {settings.seed + row})\n{prompt}{stream.text}\n")
    return made


def search(settings: argparse.Namespace, window: SlidingWindow, tokenizer: Tokenizer, prompt: str) -> int:
    """Print the texts that beam search finds, best first; returns how many tokens the longest has."""

    def cut(tokens: list[int]) -> TextStream:
        stream = TextStream(tokenizer, settings.stop)
        for token in tokens:
            stream.add(token)
        stream.finish()
        return stream

    found = beam_search(
        window,
        settings.max_new_tokens,
        settings.beams,
        settings.length_penalty,
        suppress_tokens=tokenizer.special_ids,
        finished=lambda tokens: bool(settings.stop) and cut(tokens).stopped,
    )
    for rank, hypothesis in enumerate(found[: settings.n_best], start=1):
        if settings.n_best > 1:
            scores = f"score {hypothesis.score:.4f}, log-probability {hypothesis.log_probability:.4f}"
            write(f"--- text {rank} ({scores})\n")
        write(prompt + cut(hypothesis.tokens).text + "\n")
    return max(len(hypothesis.tokens) for hypothesis in found)


def main() -> None:
    """The command: text to stdout as it is made, all else to stderr."""
    settings = parse_settings()
    prompts = read_prompts(settings)
    device = pick_device(settings.device)
    loaded = load_model(Path(settings.checkpoint))
    if settings.lora:
        apply_adapter(loaded, Path(settings.lora))
        merge_adapters(loaded.model)  # the same weights, without the sum at every token
    model, tokenizer = loaded.model.to(device), loaded.tokenizer
    prompts = [prompt for prompt in prompts for _ in range(settings.beams or settings.num_samples)]
    rows = [tokenizer.encode(prompt) or [tokenizer.start_id] for prompt in prompts]
    with user_errors():
        window = SlidingWindow(model, rows, settings.stride, FastStep(model))
    if settings.seed is None:
        settings.seed = torch.seed() % 2**31
    started = time.perf_counter()
    if settings.beams:
        made, seeded = search(settings, window, tokenizer, prompts[0]), ""
    else:
        made, seeded = sample(settings, window, tokenizer, prompts), f", seed {settings.seed}"
    seconds = time.perf_counter() - started
    print(f"{made} tokens, {made / seconds:,.0f} tokens/s{seeded}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
