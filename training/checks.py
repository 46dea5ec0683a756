"""What is refused before a run begins: flags that contradict each other, the saved run, or the machine."""

import argparse
from pathlib import Path

from recipe import AUTO, PRESETS
from support.command import UserError, flag_of
from training.distributed import DistContext
from training.state import RunPaths, TrainState

# What may change when a run is resumed; everything else would make it another run.
ADJUSTABLE = {"steps", "minutes", "stop_at", "eval_every", "eval_tokens", "patience", "tensorboard"}
ADJUSTABLE |= {"lr", "muon_lr", "warmup", "cooldown", "resume", "out", "device", "dtype", "compile"}
# What the base of a fine-tuning decides.
SHAPE = ("embed_dim", "num_heads", "num_layers", "bias", "gelu", "tie_embeddings")


def refuse_unused(settings: argparse.Namespace, given: set[str]) -> None:
    """UserError that names a given flag which would do nothing beside the others."""
    unused, beside = (), ""
    if settings.lora_rank:
        unused, beside = ("optimizer", "muon_lr", "muon_momentum", "weight_decay"), "--lora-rank, which takes AdamW"
    elif settings.optimizer == "adamw":
        by_preset = f" (of --preset {settings.preset})" if "optimizer" in PRESETS[settings.preset] else ""
        unused, beside = ("muon_lr", "muon_momentum"), f"--optimizer adamw{by_preset}"
    for name in unused:
        if name in given:
            raise UserError(f"{flag_of(name)} does nothing beside {beside}: leave it out")


def settings_to_resume(
    saved: argparse.Namespace, settings: argparse.Namespace, given: set[str], path: Path, paths: RunPaths
) -> argparse.Namespace:
    """The settings saved in `path`, changed by those given; UserError that names a flag that contradicts them."""
    for name in sorted(given - ADJUSTABLE):
        value, kept = getattr(settings, name), getattr(saved, name)
        if value not in (kept, AUTO):
            raise UserError(
                f"{flag_of(name)} {value} contradicts the run in {path} ({kept}): "
                "leave the flag out, or start a new run with another --out"
            )
    if "steps" in given:
        saved = argparse.Namespace(**{**vars(saved), "minutes": None})
    changed = {name: getattr(settings, name) for name in given & ADJUSTABLE}
    fixed = {"data": saved.data, "preset": saved.preset, "out": str(paths.best)}  # the files may have been renamed
    return argparse.Namespace(**{**vars(saved), "stop_at": None, **changed, **fixed})


def check_progress(settings: argparse.Namespace, state: TrainState, path: Path) -> None:
    """Raise UserError if there is nothing left to do."""
    if state.step >= settings.steps:
        raise UserError(f"the run in {path} has made {state.step} steps already: give a larger --steps to continue it")
    if settings.stop_at and state.step >= settings.stop_at:
        raise UserError(f"the run in {path} is at step {state.step} already: give a larger --stop-at, or none")


def settings_for_base(settings: argparse.Namespace, given: set[str], config: argparse.Namespace) -> argparse.Namespace:
    """The settings for fine-tuning a model of this config; UserError that names a flag that contradicts it.

    --max-seq may be smaller than the base's window, to save time and memory.
    """
    fixed = {name: getattr(config, name) for name in SHAPE}
    for name, value in {**fixed, "tokenizer": "its own", "init": "its own"}.items():
        if name in given and getattr(settings, name) != value:
            raise UserError(
                f"{flag_of(name)} {getattr(settings, name)} contradicts {settings.init_from} ({value}): leave it out"
            )
    if "max_seq" in given and settings.max_seq > config.max_seq:
        raise UserError(
            f"--max-seq {settings.max_seq} contradicts {settings.init_from}: its window is {config.max_seq} tokens"
        )
    kept = {name: getattr(config, name) for name in ("max_seq", "dropout", "attention_dropout") if name not in given}
    noise = {} if "token_noise" in given else {"token_noise": 0.0}  # the recipe's is for learning a text from nothing
    return argparse.Namespace(**{**vars(settings), **fixed, **kept, **noise})


def check_split(settings: argparse.Namespace, dist: DistContext) -> None:
    """Raise UserError if the batch cannot be split over ranks and --grad-accum, or the ranks' recipes differ."""
    parts = dist.size * settings.grad_accum
    if settings.batch_size % parts:
        fitting = max(1, round(settings.batch_size / parts)) * parts
        raise UserError(
            f"--batch-size {settings.batch_size} cannot be split into {dist.size} (processes) x {settings.grad_accum} "
            f"(--grad-accum) equal parts: --batch-size {fitting} can"
        )
    dist.require_same("recipe", repr(settings))


def least_memory(settings: argparse.Namespace, vocab_size: int) -> int:
    """A lower bound on the bytes that training holds at once, for refusing what cannot fit.

    Weights, gradients and one optimizer state; the mask; and what a forward pass keeps for the backward pass: per token
    and layer at least 16 x embed_dim numbers of 2 bytes, per token the logits.
    """
    width, layers, window = settings.embed_dim, settings.num_layers, settings.max_seq
    parameters = 12 * layers * width**2 + (2 * vocab_size + window) * width
    tokens = settings.batch_size // settings.grad_accum * window
    return 12 * parameters + 4 * window**2 + tokens * (2 * 16 * layers * width + 4 * vocab_size)
