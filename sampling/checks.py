"""What generate.py refuses before it loads a model: flags that do not go together."""

import argparse
import shlex

from support.command import UserError, flag_of

FILTERS = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
SOURCES = {"prompt", "prompt_file", "interactive", "score"}
# A beam search takes the likeliest texts, for one prompt; a score makes no text.
UNUSED = {
    "beams": FILTERS | {"seed", "explain", "num_samples", "prompt_file", "interactive", "score"},
    "score": FILTERS
    | {"seed", "num_samples", "stop", "max_new_tokens", "stride", "beams", "n_best", "engine", "weights"}
    | {"ignore_eos", "length_penalty"},
}
MIN_TEMPERATURE = 1e-6  # but for 0: far below it, float32 rounds to 0, and 0 / 0 is not a number


def check_together(settings: argparse.Namespace, given: dict[str, object]) -> None:
    """Raise UserError that names the flags if settings do not go together; given: those of the command line."""
    if settings.text:
        raise UserError(f"a prompt needs its flag: {command_with_prompt(given)}")
    check_temperature(settings)
    sources = sorted(given.keys() & SOURCES)
    if len(sources) > 1:
        raise UserError(f"{' and '.join(map(flag_of, sources))} exclude each other")
    for name, others in UNUSED.items():
        unused = sorted(given.keys() & others)
        if getattr(settings, name) and unused:
            raise UserError(f"{flag_of(name)} makes no use of {', '.join(map(flag_of, unused))}: leave it out")
    if settings.n_best > max(1, settings.beams):
        raise UserError(f"--n-best {settings.n_best} needs at least as many --beams, not {settings.beams}")
    if settings.explain and (settings.num_samples > 1 or settings.prompt_file):
        raise UserError("--explain shows one text: leave --num-samples and --prompt-file out")


def check_temperature(settings: argparse.Namespace) -> None:
    """Raise UserError if the temperature is too near to 0."""
    if 0 < settings.temperature < MIN_TEMPERATURE:
        raise UserError(f"--temperature must be 0 or at least {MIN_TEMPERATURE}, not {settings.temperature}")


def command_with_prompt(given: dict[str, object]) -> str:
    """The command line that was meant, if the words without a flag, `text`, belong to the prompt."""
    words = [given.get("prompt"), *given["text"]]
    flags = {name: value for name, value in given.items() if name != "text"}
    flags["prompt"] = " ".join(word for word in words if word)
    line = ["python", "generate.py"]
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            line += [flag_of(name)] if one is True else [flag_of(name), str(one)]
    return shlex.join(line)
