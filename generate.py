r"""Sample text from a trained checkpoint.

python generate.py --prompt "ROMEO:"
python generate.py --prompt "ROMEO:" --beams 4 --stop "\n\n"
python generate.py --prompt "ROMEO:" --top-k 20 --top-p 0.9 --explain --max-new-tokens 5
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from formats.checkpoint import apply_adapter, load_checkpoint
from sampler import Sampling, generate, row_generators
from sampling.beam import beam_search
from sampling.decode import WEIGHTS, FastStep, Reader
from sampling.explain import Explainer
from sampling.text_stream import TextStream
from support import command as cli
from support.command import setting
from support.device import pick_device
from training.lora import merge_adapters


@dataclass(frozen=True)
class SampleSettings:
    """Every flag of generate.py, with its one default."""

    checkpoint: str = setting("checkpoints/tiny_decoder.pth", "the model to sample from", group="input")
    lora: str | None = setting(None, "an adapter of that model, from main.py --lora-rank", group="input")
    prompt: str | None = setting(None, "how the text begins; without it, as a new line does", group="input")
    prompt_file: str | None = setting(None, "a UTF-8 file with a prompt on each line, for one batch", group="input")

    max_new_tokens: int = setting(500, "how many tokens to add", group="length", low=0, high=10**9)
    stop: tuple[str, ...] = setting(
        (), "end the text before this string, which \\n may be part of; may be given several times", group="length"
    )
    num_samples: int = setting(1, "how many texts for each prompt, all in one batch", group="length", low=1, high=4096)

    temperature: float = setting(
        0.8, "below 1 bolder, above 1 wilder, 0 always the likeliest token", group="sampling", low=0, high=1e6
    )
    top_k: int = setting(0, "choose among the k likeliest tokens, 0 among all", group="sampling", low=0, high=10**9)
    top_p: float = setting(
        1.0, "choose among the fewest likeliest tokens that have this probability together", group="sampling",
        above=0, high=1,
    )  # fmt: skip
    min_p: float = setting(
        0.0, "choose among tokens at least this share as likely as the likeliest", group="sampling", low=0, high=1
    )
    repetition_penalty: float = setting(
        1.0, "above 1 makes tokens that the text already holds less likely", group="sampling", low=1e-3, high=1e6
    )
    seed: int | None = setting(
        None, "same seed, same text; text i of several is seed + i (default: drawn, and shown)", group="sampling",
        low=0, high=2**63 - 1,
    )  # fmt: skip
    explain: bool = setting(False, "show on stderr how the filters treat each token's candidates", group="sampling")

    beams: int = setting(0, "search for the likeliest text with this many beams; 0 samples", group="beam search",
                         low=0, high=1024)  # fmt: skip
    n_best: int = setting(1, "how many of the texts found to print, with scores", group="beam search", low=1, high=1024)
    length_penalty: float = setting(
        1.0, "divide log-probabilities by length to this power: 0 favours short texts", group="beam search",
        low=-100, high=100,
    )  # fmt: skip

    hop: int = setting(
        1, "tokens that a full window jumps at a time: 1 is exact, more is faster with a shorter view", group="machine",
        low=1, high=2**14,
    )  # fmt: skip
    weights: str = setting(
        "float32", "precision of the weights for each further token; int8 is faster and close", group="machine",
        choices=WEIGHTS,
    )  # fmt: skip
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu", group="machine")

    def __post_init__(self):
        cli.validate(self)
        if 0 < self.temperature < 1e-6:
            raise ValueError(f"--temperature must be 0 or at least 1e-6, not {self.temperature}")
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("--prompt and --prompt-file exclude each other")
        if self.beams and (self.num_samples > 1 or self.prompt_file or self.explain):
            raise ValueError("--beams searches for one prompt: leave --num-samples, --prompt-file and --explain out")
        if self.n_best > max(1, self.beams):
            raise ValueError(f"--n-best {self.n_best} needs at least as many --beams, not {self.beams}")
        if self.explain and (self.num_samples > 1 or self.prompt_file):
            raise ValueError("--explain shows one text: leave --num-samples and --prompt-file out")


def parse_settings(arguments: list[str] | None = None) -> SampleSettings:
    """The settings that a command line asks for."""
    parser = cli.Parser(__doc__)
    cli.add_flags(parser, SampleSettings)
    given = cli.given_flags(parser.parse_args(arguments))
    if "stop" in given:  # a newline is hard to type
        given["stop"] = tuple(text.replace("\\n", "\n") for text in given["stop"])
    return SampleSettings(**given)


def read_prompts(settings: SampleSettings) -> list[str]:
    """One prompt, or those of the prompt file: a line each, empty lines left out.

    Raises ValueError if the file is missing, not UTF-8 or empty, OSError if it cannot be read.
    """
    if settings.prompt_file is None:
        return [settings.prompt or ""]
    path = Path(settings.prompt_file)
    if not path.is_file():
        raise ValueError(f"--prompt-file {path}: no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file {path} is not UTF-8 text (byte {error.start})") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"--prompt-file {path} holds no prompt")
    return prompts


def write(text: str) -> None:
    """Text to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def sample(settings: SampleSettings, reader: Reader, tokenizer, prompts: list[str], seed: int) -> int:
    """Print a text for every row of the reader; returns how many tokens were made.

    A single text appears as it is made, several one after the other at the end.
    """
    sampling = Sampling(
        settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty
    )
    streams = [TextStream(tokenizer, settings.stop) for _ in prompts]
    watch = Explainer(tokenizer) if settings.explain else None
    generators = row_generators(seed, len(prompts))
    alone = len(prompts) == 1
    made = 0
    if alone:
        write(prompts[0])
    for chosen in generate(reader, settings.max_new_tokens, generators, sampling, tokenizer.special_ids, watch):
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
        for number, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
            write(f"--- text {number + 1} (seed {seed + number})\n{prompt}{stream.text}\n")
    return made


def search(settings: SampleSettings, reader: Reader, tokenizer, prompt: str) -> int:
    """Print the texts that beam search finds, best first; returns how many tokens the longest has."""

    def cut(tokens: list[int]) -> TextStream:
        stream = TextStream(tokenizer, settings.stop)
        for token in tokens:
            stream.add(token)
        stream.finish()
        return stream

    found = beam_search(
        reader,
        settings.max_new_tokens,
        settings.beams,
        settings.length_penalty,
        never=tokenizer.special_ids,
        finished=lambda tokens: bool(settings.stop) and cut(tokens).stopped,
    )
    for number, hypothesis in enumerate(found[: settings.n_best], start=1):
        if settings.n_best > 1:
            scores = f"score {hypothesis.score:.4f}, log-probability {hypothesis.log_probability:.4f}"
            write(f"--- text {number} ({scores})\n")
        write(prompt + cut(hypothesis.tokens).text + "\n")
    return max(len(hypothesis.tokens) for hypothesis in found)


def main() -> None:
    """The command: text to stdout as it is made, all else to stderr."""
    settings = parse_settings()
    prompts = read_prompts(settings)
    device = pick_device(settings.device)
    loaded = load_checkpoint(Path(settings.checkpoint))
    if settings.lora:
        apply_adapter(loaded, Path(settings.lora))
        merge_adapters(loaded.model)  # the same weights, without the sum at every token
    model, tokenizer = loaded.model.to(device), loaded.tokenizer
    copies = settings.beams or settings.num_samples
    rows = [tokenizer.encode(prompt) or [tokenizer.start_id] for prompt in prompts for _ in range(copies)]
    reader = Reader(model, rows, settings.hop, FastStep(model, settings.weights))
    started = time.perf_counter()
    if settings.beams:
        made, seeded = search(settings, reader, tokenizer, prompts[0]), ""
    else:
        seed = settings.seed if settings.seed is not None else torch.seed() % 2**31
        prompts = [prompt for prompt in prompts for _ in range(copies)]
        made, seeded = sample(settings, reader, tokenizer, prompts, seed), f", seed {seed}"
    seconds = time.perf_counter() - started
    print(f"{made} tokens, {made / seconds:,.0f} tokens/s{seeded}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
