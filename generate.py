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
from functools import partial
from pathlib import Path

import torch

from formats.adapter import apply_adapter
from formats.checkpoint import load_model, usual_path
from lora import merge_adapters
from sampler import TEMPERATURE, Sampling, SlidingWindow, row_generators
from sampling.checks import check_together
from sampling.engine import ENGINES, WEIGHTS, pick_engine
from sampling.explain import explain
from sampling.interactive import conversation, one_answer
from sampling.output import print_beams, print_samples
from sampling.prompts import read_prompts, unescape
from sampling.score import print_score
from sampling.text_stream import TextStream, suppressed
from support.command import Parser, given_flags, number, one_of, path_name, run, text, user_errors, whole
from support.device import pick_device
from tiny_decoder import TinyGPT
from tokenizer import Tokenizer


def make_parser() -> Parser:
    """Every flag of generate.py, with its one default."""
    parser = Parser(__doc__)
    add = parser.add_argument_group("input").add_argument
    add("--checkpoint", type=path_name, default=usual_path(), help="the model to sample from")
    add("--lora", type=path_name, help="an adapter of that model, from main.py --lora-rank")
    begins = r"how the text begins (\n new line, \t tab, \\ backslash); - reads standard input; default: none"
    add("--prompt", help=begins)
    add("--prompt-file", type=path_name, help="UTF-8 prompts for one batch: a line each, or lines of --- between them")
    add("--interactive", action="store_true", help="ask for prompt after prompt; /help shows what can be set")
    add("--score", type=path_name, metavar="FILE", help="print how likely the model finds a text; write none")
    add("text", nargs="*", help=argparse.SUPPRESS)  # a prompt without --prompt, for a helpful error
    add = parser.add_argument_group("length").add_argument
    add("--max-new-tokens", type=whole(0, 10**9), default=500, help="how many tokens to add")
    add("--stop", type=text, action="append", default=[], help=r"end before this text (\n as in --prompt); repeatable")
    add("--ignore-eos", action="store_true", help="go on where a document would end, or GPT-2's text")
    add("--num-samples", type=whole(1, 4096), default=1, help="how many texts for each prompt, all in one batch")
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=number(0, 1e6), default=TEMPERATURE, help="lower safer, higher wilder, 0 the likeliest")
    add("--top-k", type=whole(0, 10**9), default=0, help="keep the k likeliest tokens; 0 keeps all")
    add("--top-p", type=number(above=0, high=1), default=1.0, help="keep the fewest tokens that reach this total")
    add("--min-p", type=number(0, 1), default=0.0, help="drop tokens below this share of the top one")
    add("--repetition-penalty", type=number(1e-3, 1e6), default=1.0, help="above 1: fewer repeated tokens")
    add("--seed", type=whole(0, 2**63 - 1), help="same seed, same text; each further text takes the next seed")
    add("--explain", action="store_true", help="show how the filters treat each token, or with --score each loss")
    add = parser.add_argument_group("beam search").add_argument
    add("--beams", type=whole(0, 1024), default=0, help="search for the likeliest text with this many beams; 0 samples")
    add("--n-best", type=whole(1, 1024), default=1, help="how many of the best texts to print, with scores")
    add("--length-penalty", type=number(-10, 10), default=1.0, help="divide scores by length to this power")
    add = parser.add_argument_group("machine").add_argument
    add("--stride", type=whole(1, 2**14), help="tokens that a full window moves at once (default: half; 1 is exact)")
    add("--engine", type=one_of(*ENGINES), default="auto", help="compiled needs numba; auto: from 1,000 tokens on")
    add("--weights", type=one_of(*WEIGHTS), default="float32", help="int8 is smaller and less exact; needs numba")
    add("--device", type=text, default="auto", help="cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu")
    return parser


def parse_settings(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings that a command line asks for. Raises UserError that names the flag if they do not go together."""
    parser = make_parser()
    settings = parser.parse_args(arguments)
    check_together(settings, given_flags(parser, arguments))
    settings.stop = [unescape(stop) for stop in settings.stop]
    return settings


def write_texts(settings: argparse.Namespace, model: TinyGPT, tokenizer: Tokenizer, prompts: list[str]) -> None:
    """Print the texts that the settings ask for, and on stderr how fast they were made."""
    prompts = [prompt for prompt in prompts for _ in range(settings.beams or settings.num_samples)]
    rows = [tokenizer.encode(prompt) or [tokenizer.start_id] for prompt in prompts]
    seed = torch.seed() % 2**31 if settings.seed is None else settings.seed
    engine = "torch" if settings.explain else settings.engine  # only that loop can be watched
    step, loop = pick_engine(engine, settings.weights, model, settings.max_new_tokens, len(rows))
    with user_errors():
        window = SlidingWindow(model, rows, settings.stride, step)
    if step is None and len(rows) == 1 and settings.stride is None and model.config.embed_dim < 512:
        torch.set_num_threads(1)  # several would wait for each other longer than they compute (docs/decoding.md)
    started = time.perf_counter()
    if settings.beams:
        count = print_beams(settings, window, tokenizer, prompts[0])
    else:
        filters = (settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty)
        options = [row_generators(seed, len(rows)), Sampling(*filters), suppressed(tokenizer)]
        if settings.explain:
            options.append(partial(explain, tokenizer))
        steps = loop(window, settings.max_new_tokens, *options)
        streams = [TextStream(tokenizer, settings.stop) for _ in rows]
        count = print_samples(steps, streams, prompts, seed)
    rate, seeded = count / (time.perf_counter() - started), "" if settings.beams else f", seed {seed}"
    print(f"{count} tokens, {rate:,.0f} tokens/s{seeded}", file=sys.stderr)


def main() -> None:
    """The command: text to stdout as it is made, all else to stderr."""
    settings = parse_settings()
    prompts = [] if settings.interactive or settings.score else read_prompts(settings)
    device = pick_device(settings.device)
    loaded = load_model(Path(settings.checkpoint))
    if settings.lora:
        apply_adapter(loaded, Path(settings.lora))
        merge_adapters(loaded.model)  # the same weights, without the sum at every token
    model, tokenizer = loaded.model.to(device), loaded.tokenizer
    if settings.ignore_eos:
        tokenizer.eos_id = None
    if settings.score:
        print_score(model, tokenizer, settings.score, settings.explain)
    elif settings.interactive:
        for changed, prompt in conversation(settings, make_parser()):
            with one_answer():
                write_texts(changed, model, tokenizer, [prompt])
    else:
        write_texts(settings, model, tokenizer, prompts)


if __name__ == "__main__":
    run(main)
