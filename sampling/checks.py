"""What generate.py refuses before it loads a model: flags that do not go together."""

import argparse

from support.command import UserError, flag_of, typed

FILTERS = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"}
# Beside each of these, the flags that would do nothing. Beam search takes the likeliest texts, of one prompt; a score
# makes no text; the table of --explain comes from PyTorch's loop, for one text.
UNUSED = {
    "beams": FILTERS | {"num_samples", "explain", "interactive", "prompt_file"},
    "explain": {"num_samples", "prompt_file", "engine", "weights"},
    "interactive": {"prompt", "prompt_file"},
    "prompt_file": {"prompt"},
    "score": FILTERS
    | {"prompt", "prompt_file", "interactive", "num_samples", "beams", "max_new_tokens", "stop"}
    | {"engine", "weights", "stride", "length_penalty", "ignore_eos"},
}


def check_together(settings: argparse.Namespace, given: dict[str, object]) -> None:
    """Raise UserError that names the flags if settings do not go together; given: those of the command line."""
    if settings.text:
        prompt = " ".join([settings.prompt or "", *settings.text]).strip()
        raise UserError(f"a prompt needs its flag and quotes: --prompt {typed([prompt])}")
    for name, others in UNUSED.items():
        unused = sorted(given.keys() & others)
        if getattr(settings, name) and unused:
            raise UserError(f"{flag_of(name)} makes no use of {', '.join(map(flag_of, unused))}: leave it out")
    if settings.n_best > max(1, settings.beams):
        raise UserError(f"--n-best {settings.n_best} needs at least as many --beams, not {settings.beams}")
