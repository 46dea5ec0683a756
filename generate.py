r"""Sample text from a trained checkpoint.

examples:
  python generate.py --prompt "ROMEO:"
  python generate.py --prompt "ROMEO:" --beams 4 --stop "\n\n"
  python generate.py --prompt "ROMEO:" --top-k 20 --top-p 0.9 --explain --max-new-tokens 5
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

import argparse
import io
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from formats.adapter import apply_adapter
from formats.checkpoint import LARGE_WINDOW_HELP, USUAL_PATH, Tokenizer, load_model
from lora import merge_adapters
from sampler import Sampling, SlidingWindow, row_generators
from sampling.engine import ENGINES, WEIGHTS, pick_engine
from sampling.explain import Explainer
from sampling.output import Output, search
from sampling.prompts import converse, read_prompts, unescape
from sampling.score import print_score
from sampling.text_stream import TextStream, suppressed
from support.command import Parser, UserError, flag_of, given_flags, number, run, text, user_errors, whole
from support.device import pick_device
from tiny_decoder import TinyGPT

FILTERS = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
# A beam search takes the likeliest texts, for one prompt; a score makes no text.
UNUSED_BY_BEAMS = FILTERS | {"seed", "explain", "num_samples", "prompt_file", "interactive", "score"}
UNUSED_BY_SCORE = FILTERS | {"seed", "num_samples", "stop", "max_new_tokens", "stride", "beams", "n_best"}
UNUSED_BY_SCORE |= {"engine", "weights", "ignore_eos", "length_penalty"}


def make_parser() -> Parser:
    """Every flag of generate.py, with its one default."""
    parser = Parser(__doc__)
    add = parser.add_argument_group("input").add_argument
    add("--checkpoint", type=text, default=USUAL_PATH, help="the model to sample from")
    add("--lora", type=text, help="an adapter of that model, from main.py --lora-rank")
    add("--large-window", action="store_true", help=LARGE_WINDOW_HELP)
    begins = r"how the text begins (\n new line, \t tab, \\ backslash); - reads standard input; default: none"
    add("--prompt", help=begins)
    add("--prompt-file", type=text, help="UTF-8 prompts for one batch: a line each, or with lines of --- between them")
    add("--interactive", action="store_true", help="ask for prompt after prompt; / shows what can be set")
    add("--score", type=text, metavar="FILE", help="how likely the model finds a text, instead of writing one")
    add("text", nargs="*", help=argparse.SUPPRESS)  # a prompt without --prompt, for a helpful error
    add = parser.add_argument_group("length").add_argument
    add("--max-new-tokens", type=whole(0, 10**9), default=500, help="how many tokens to add")
    add("--stop", type=text, action="append", default=[], help=r"end before this text (\n as in --prompt); repeatable")
    add("--ignore-eos", action="store_true", help="go on where GPT-2 ends a text: never sample its <|endoftext|>")
    add("--num-samples", type=whole(1, 4096), default=1, help="how many texts for each prompt, all in one batch")
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=number(0, 1e6), default=0.8, help="below 1 safer, above 1 wilder, 0 the likeliest token")
    add("--top-k", type=whole(0, 10**9), default=0, help="choose among the k likeliest tokens, 0 among all")
    add("--top-p", type=number(above=0, high=1), default=1.0, help="choose among the likeliest that reach this sum")
    add("--min-p", type=number(0, 1), default=0.0, help="choose among tokens at least this share as likely as the best")
    add("--repetition-penalty", type=number(1e-3, 1e6), default=1.0, help="above 1: tokens in the text are less likely")
    add("--seed", type=whole(0, 2**63 - 1), help="same seed, same text; each further text has the next one")
    add("--explain", action="store_true", help="show how the filters treat each token, or with --score each loss")
    add = parser.add_argument_group("beam search").add_argument
    add("--beams", type=whole(0, 1024), default=0, help="search for the likeliest text with so many beams; 0 samples")
    add("--n-best", type=whole(1, 1024), default=1, help="how many of the texts found to print, with scores")
    add("--length-penalty", type=number(-100, 100), default=1.0, help="divide scores by length to this power")
    add = parser.add_argument_group("machine").add_argument
    add("--stride", type=whole(1, 2**14), help="tokens that a full window moves at once (default: half; 1 is exact)")
    add("--engine", choices=ENGINES, default="auto", help="compiled needs numba; auto takes it from 1,000 tokens on")
    add("--weights", choices=WEIGHTS, default="float32", help="int8 is smaller and less exact; needs numba")
    add("--device", type=text, default="auto", help="cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu")
    return parser


def parse_settings(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings that a command line asks for. Raises UserError that names the flag if they do not go together."""
    parser = make_parser()
    settings, given = parser.parse_args(arguments), given_flags(parser, arguments)
    settings.stop = [unescape(stop) for stop in settings.stop]
    if settings.text:
        raise UserError(f"a prompt needs its flag: python generate.py --prompt {shlex.quote(' '.join(settings.text))}")
    if 0 < settings.temperature < 1e-6:
        raise UserError(f"--temperature must be 0 or at least 1e-6, not {settings.temperature}")
    sources = given.keys() & {"prompt", "prompt_file", "interactive", "score"}
    if len(sources) > 1:
        raise UserError(f"{' and '.join(flag_of(name) for name in sorted(sources))} exclude each other")
    for flag, names in (("beams", UNUSED_BY_BEAMS), ("score", UNUSED_BY_SCORE)):
        if getattr(settings, flag) and (unused := sorted(given.keys() & names)):
            shown = ", ".join(map(flag_of, unused))
            raise UserError(f"{flag_of(flag)} makes no use of {shown}: leave it out")
    if settings.n_best > max(1, settings.beams):
        raise UserError(f"--n-best {settings.n_best} needs at least as many --beams, not {settings.beams}")
    if settings.explain and (settings.num_samples > 1 or settings.prompt_file):
        raise UserError("--explain shows one text: leave --num-samples and --prompt-file out")
    return settings


def print_samples(
    settings: argparse.Namespace, window: SlidingWindow, loop: Callable, tokenizer: Tokenizer, prompts: list[str]
) -> int:
    """Print a text for every row of the window, with `sampler.generate` or a loop like it; returns how many
    tokens were made.

    A single text appears as it is made, several one after the other at the end.
    """
    filters = Sampling(**{name: getattr(settings, name) for name in FILTERS})
    output, streams = Output(), [TextStream(tokenizer, settings.stop) for _ in prompts]
    watch = Explainer(tokenizer, before=output.end_line) if settings.explain else None
    several = len(prompts) > 1
    sinks = [io.StringIO() for _ in prompts] if several else [output]
    for sink, prompt in zip(sinks, prompts, strict=True):
        sink.write(prompt)
    generators, made = row_generators(settings.seed, len(prompts)), 0
    for chosen in loop(window, settings.max_new_tokens, generators, filters, suppressed(tokenizer), watch):
        for sink, stream, token in zip(sinks, streams, chosen, strict=True):
            made += not stream.stopped
            sink.write(stream.add(token))
        if all(stream.stopped for stream in streams):
            break
    for row, (sink, stream) in enumerate(zip(sinks, streams, strict=True)):
        sink.write(stream.finish() + "\n")
        if several:
            output.write(f"--- text {row + 1} (seed {settings.seed + row})\n{sink.getvalue()}")
    return made


def write_texts(settings: argparse.Namespace, model: TinyGPT, tokenizer: Tokenizer, prompts: list[str]) -> None:
    """Print the texts that the settings ask for, and on stderr how fast they were made."""
    prompts = [prompt for prompt in prompts for _ in range(settings.beams or settings.num_samples)]
    rows = [tokenizer.encode(prompt) or [tokenizer.start_id] for prompt in prompts]
    step, loop = pick_engine(settings.engine, settings.weights, model, settings.max_new_tokens)
    with user_errors():
        window = SlidingWindow(model, rows, settings.stride, step)
    started = time.perf_counter()
    if settings.beams:
        made, seeded = search(settings, window, tokenizer, prompts[0]), ""
    else:
        seed = torch.seed() % 2**31 if settings.seed is None else settings.seed
        settings = argparse.Namespace(**vars(settings) | {"seed": seed})
        made, seeded = print_samples(settings, window, loop, tokenizer, prompts), f", seed {seed}"
    seconds = time.perf_counter() - started
    print(f"{made} tokens, {made / seconds:,.0f} tokens/s{seeded}", file=sys.stderr)


def main() -> None:
    """The command: text to stdout as it is made, all else to stderr."""
    settings = parse_settings()
    prompts = [] if settings.interactive or settings.score else read_prompts(settings)
    device = pick_device(settings.device)
    loaded = load_model(Path(settings.checkpoint), settings.large_window)
    if settings.lora:
        apply_adapter(loaded, Path(settings.lora))
        merge_adapters(loaded.model)  # the same weights, without the sum at every token
    model, tokenizer = loaded.model.to(device), loaded.tokenizer
    if settings.ignore_eos:
        tokenizer.eos_id = None
    if settings.score:
        print_score(model, tokenizer, settings.score, settings.explain)
    elif settings.interactive:
        converse(settings, make_parser(), lambda now, prompt: write_texts(now, model, tokenizer, [prompt]))
    else:
        write_texts(settings, model, tokenizer, prompts)


if __name__ == "__main__":
    run(main)
