"""What is refused before a run begins: flags that contradict each other, the saved run, or the machine."""

from argparse import Namespace
from pathlib import Path

import torch

from recipe import AUTO, MAX_STEPS, check_together, make_parser, preset_settings
from support.command import UserError, flag_of
from tiny_decoder import TinyGPTConfig
from training.distributed import DistContext

# What may change when a run is resumed; everything else would make it another run. (Of data, the place, not the text.)
ADJUSTABLE = {"data", "steps", "minutes", "stop_at", "eval_every", "eval_tokens", "patience"}
ADJUSTABLE |= {"lr", "muon_lr", "warmup", "cooldown", "grad_accum", "resume", "out", "device", "dtype", "compile"}
# What the base of a fine-tuning decides.
SHAPE = ("embed_dim", "num_heads", "num_layers", "bias", "gelu", "tie_embeddings")


def refuse_unused(settings: Namespace, given: set[str]) -> None:
    """UserError that names a given flag which would do nothing beside the others."""
    unused, beside = (), ""
    if settings.lora_rank:
        unused, beside = ("optimizer", "muon_lr", "muon_momentum", "weight_decay"), "--lora-rank, which takes AdamW"
    elif settings.optimizer == "adamw":
        unused, beside = ("muon_lr", "muon_momentum"), "--optimizer adamw"
    for name in sorted(given.intersection(unused)):
        raise UserError(f"{flag_of(name)} does nothing beside {beside}: leave it out")


def saved_settings(saved: dict) -> Namespace:
    """Settings that a file has kept, checked: argparse reads defaults that are text by the types of their flags.

    Raises UserError if one is missing, unknown, of another kind or out of bounds.
    """
    parser = make_parser()
    defaults = vars(parser.parse_args([]))
    if strange := defaults.keys() ^ saved.keys():
        raise UserError(f"{', '.join(sorted(strange))[:80]} missing or unknown: another version of TinyGPT saved it")
    for name, value in saved.items():
        yes_no = name == "compile" or isinstance(defaults[name], bool)
        fitting = isinstance(value, bool) if yes_no else isinstance(value, int | float | str)
        if name == "data":
            fitting = isinstance(value, list) and value and all(isinstance(word, str) for word in value)
        if not fitting and not (value is None and defaults[name] is None):
            raise UserError(f"{flag_of(name)} is neither a number nor text")
        parser.set_defaults(**{name: value if yes_no or value is None or name == "data" else str(value)})
    settings = parser.parse_args([])
    check_together(settings)
    return settings


def settings_to_resume(saved: Namespace, settings: Namespace, given: set[str], path: Path, due: int) -> Namespace:
    """The settings saved in `path`, changed by those given; UserError that names a flag that contradicts them.

    due: the step of which an evaluation has still to be made, or 0.
    """
    for name in sorted(given - ADJUSTABLE):
        value, kept = getattr(settings, name), getattr(saved, name)
        if value not in (kept, AUTO):
            advice = "leave the flag out, or start a new run with another --out"
            raise UserError(f"{flag_of(name)} {value} contradicts the run in {path} ({kept}): {advice}")
    resumed = vars(saved) | {"stop_at": None, "out": settings.out}  # the files may have been renamed
    if "steps" in given and saved.eval_every == MAX_STEPS:  # the plan that would have set it is dropped
        resumed["eval_every"] = preset_settings(saved.preset).eval_every
    if "steps" in given:
        resumed |= {"minutes": None, "epochs": 0.0}
    if "minutes" in given:  # so many more, planned anew
        resumed |= {"steps": MAX_STEPS, "epochs": 0.0, "eval_every": due or MAX_STEPS}
    return Namespace(**resumed | {n: v for n, v in vars(settings).items() if n in given & ADJUSTABLE and v != [AUTO]})


def settings_for_base(settings: Namespace, given: set[str], config: TinyGPTConfig) -> Namespace:
    """The settings for fine-tuning a model of this config; UserError that names a flag that contradicts it.

    --max-seq may be smaller than the base's window, to save time and memory.
    """
    fixed = {name: getattr(config, name) for name in SHAPE}
    for name, wanted in {**fixed, "max_seq": config.max_seq, "tokenizer": "its own", "init": "its own"}.items():
        value = getattr(settings, name)
        if name in given and value != wanted and not (name == "max_seq" and value < wanted):
            raise UserError(f"{flag_of(name)} {value} contradicts {settings.init_from} ({wanted}): leave it out")
    unless_given = {name: getattr(config, name) for name in ("max_seq", "dropout", "attention_dropout")}
    kept = {name: value for name, value in unless_given.items() if name not in given}
    return Namespace(**vars(settings) | fixed | kept)


def check_split(settings: Namespace, dist: DistContext) -> None:
    """Raise UserError if the batch cannot be split over ranks and --grad-accum."""
    if settings.batch_size % (dist.size * settings.grad_accum):
        parts = f"{dist.size} (processes) x {settings.grad_accum} (--grad-accum)"
        raise UserError(f"--batch-size {settings.batch_size} must be divisible by {parts}")


def training_memory(settings: Namespace, vocab_size: int, dtype: torch.dtype, processes: int) -> int:
    """About how many bytes each of so many processes holds at once, for refusing what cannot fit.

    Weights and, unless they are frozen, gradients and one optimizer state; their average; the mask; and what a forward
    pass keeps for the backward pass, as measured on a CPU: per token and layer 20 x embed_dim numbers of the products'
    precision, per token the logits in that precision, in float32, and their gradients.
    """
    width, layers, window = settings.embed_dim, settings.num_layers, settings.max_seq
    parameters = 12 * layers * width**2 + (2 * vocab_size + window) * width
    tokens = settings.batch_size // (settings.grad_accum * processes) * window
    bytes_each = 4 if settings.lora_rank else 12
    bytes_each += 4 if settings.ema_decay else 0
    return bytes_each * parameters + 4 * window**2 + tokens * (20 * dtype.itemsize * layers * width + 16 * vocab_size)
