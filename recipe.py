"""The training recipe: every flag of main.py with its default, the presets, and the learning-rate schedule."""

import argparse
import math
import os

from corpora.documents import GLOB, text_size
from formats.checkpoint import LIMITS, usual_path
from support.command import Parser, UserError, flag_of, given_flags, number, one_of, path_name, text, whole
from support.device import pick_device, pick_dtype, product_rate

AUTO = "auto"
MAX_STEPS = 10**9
DEFAULT_MINUTES = 5.0  # of a run, if neither a preset nor a number of steps is given
MIN_WARMUP = 4  # steps, whose time is measured when a run is planned
MAX_EPOCHS = 35.0  # times through the text, if neither the user nor the preset says: more is memorised
# A text of fewer characters is soon memorised: `short` stops in time, and learns from softer targets.
SHORT_TEXT = 500_000

# Which preset learns most: each up to this many TFLOP of matrix products that the CPU can compute in the time of the
# run. A wider network learns more from each step, but makes fewer.
MAX_TFLOP = {"tiny": 42, "mini": 200, "small": 1800, "best": math.inf}
# The same for a short text, per character. Soft targets help if there is time to read it several times.
MAX_TFLOP_PER_CHARACTER = {"tiny": 45e-6, "brief": 120e-6, "short": math.inf}

# What each preset changes of the defaults below; `plain` is the defaults: for a network of your own.
TINY = {
    "max_seq": 64,
    "embed_dim": 128,
    "num_heads": 2,
    "num_layers": 2,
    "init": "sinusoid",
    "windows": "random",
    "batch_size": 32,
    "steps": 220,
    "eval_every": 20,
    "warmup": 4,
    "lr": 0.01,
    "muon_lr": 0.05,
    "muon_momentum": 0.85,
    "weight_decay": 0.2,
}
BASE = {"embed_dim": 384, "num_heads": 6, "num_layers": 6, "batch_size": 64, "dropout": 0.2}
# Soft targets (docs/training.md), for a text that is read many times.
SOFT = {"ema_decay": 0.98, "distill": 0.7, "epochs": 10.0}
PRESETS = {
    "tiny": TINY,
    "brief": {**TINY, **SOFT, "distill": 0.6, "max_seq": 128, "batch_size": 16, "steps": 600, "eval_every": 60},
    "short": {**TINY, **SOFT, "num_layers": 4, "lr": 0.006, "muon_lr": 0.03, "steps": 2400, "eval_every": 200},
    "mini": {"embed_dim": 128, "num_heads": 2, "ema_decay": 0.98, "steps": 1800, "eval_every": 180, "warmup": 40},
    "small": {"lr": 0.004, "ema_decay": 0.998, "distill": 0.5, "epochs": 16.0, "steps": 2000, "eval_every": 200},
    "plain": {},
    "tune": {**SOFT, "epochs": 6.0, "lr": 0.004, "muon_lr": 0.012, "steps": 400, "eval_every": 40},
    "lora": {"epochs": 10.0, "lr": 0.012, "steps": 400, "eval_every": 40},
    "base": {**BASE, "steps": 2000, "warmup": 40, "eval_every": 250},
    "best": {
        "max_seq": 512,
        "embed_dim": 256,
        "num_heads": 4,
        "num_layers": 6,
        "dropout": 0.1,
        "init": "sinusoid",
        "batch_size": 8,
        "steps": 8400,
        "warmup": 168,
        "cooldown": 0.4,
        "eval_every": 400,
        "ema_decay": 0.998,
        "distill": 0.5,
    },
}


# --- Flags -------------------------------------------------------------------------------------------------------

COUNT = whole(1, MAX_STEPS)
SHARE = number(low=0, below=1)
RATE = number(above=0, high=100)
YES_NO = argparse.BooleanOptionalAction


class PresetAction(argparse.Action):
    """Makes the preset's values the defaults, so that --help after it shows them."""

    def __call__(self, parser, namespace, value, option_string=None):
        namespace.preset = value
        parser.set_defaults(**PRESETS.get(value, {}))


def add_corpus_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("corpus").add_argument
    corpora = "tinyshakespeare, gutenberg, synthetic, auto, or UTF-8 texts, or folders of them"
    add("--data", type=path_name, nargs="+", default=[AUTO], help=corpora)
    parts = 'where a text holds many: lines, blank (empty lines between them), or "=STRING" between them'
    add("--documents", type=text, help=parts)
    add("--glob", type=text, default=GLOB, help="the files that are taken of a folder and its subfolders")


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    add("--tokenizer", type=path_name, default="char", help="char, or a BPE vocabulary from train_tokenizer.py")
    add("--out", type=path_name, default=usual_path(), help="where the best model goes")
    add("--init-from", type=path_name, help="a model to fine-tune: its weights, shape and tokenizer")
    add("--resume", action="store_true", help="continue from the training state beside --out")


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    add("--max-seq", type=whole(1, LIMITS["max_seq"]), default=256, help="window, in tokens")
    add("--embed-dim", type=whole(1, LIMITS["embed_dim"]), default=192, help="width of the residual stream")
    add("--num-heads", type=whole(1, LIMITS["num_heads"]), default=3, help="attention heads; must divide --embed-dim")
    add("--num-layers", type=whole(1, LIMITS["num_layers"]), default=4, help="decoder blocks")
    add("--dropout", type=SHARE, default=0.0, help="probability of zeroing an activation while training")
    add("--attention-dropout", type=SHARE, default=0.0, help="the same for attention weights")
    add("--bias", action=YES_NO, default=True, help="biases in linear layers and norms")
    add("--gelu", type=one_of("exact", "tanh"), default="exact", help="tanh is GPT-2's approximation")
    add("--tie-embeddings", action=YES_NO, default=False, help="share the token embedding with the head")
    init = "initial weights: GPT-2's, or Xavier's with sines for positions"
    add("--init", type=one_of("normal", "sinusoid"), default="normal", help=init)


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    recipes = "recipe; auto: what learns most in the time, on this device"
    add("--preset", type=one_of(AUTO, *PRESETS), default=AUTO, action=PresetAction, help=recipes)
    add("--steps", type=COUNT, default=1200, help="optimizer steps in all; the schedule ends there")
    planned = f"plan as many steps as fit (default: {DEFAULT_MINUTES:g} without --preset, --steps, --resume)"
    add("--minutes", type=number(above=0, high=1e6), help=planned)
    add("--epochs", type=number(0, 1e6), default=0.0, help="at most so many times through the text; 0: no limit")
    add("--stop-at", type=COUNT, help="stop after this step and save; --resume continues")
    add("--batch-size", type=whole(1, 2**20), default=16, help="windows per optimizer step")
    add("--grad-accum", type=whole(1, 2**20), default=1, help="parts to split each batch into, to save memory")
    order = "epochs: all windows side by side, once an epoch, shuffled; random: each begins anywhere"
    add("--windows", type=one_of("epochs", "random"), default="epochs", help=order)
    add("--eval-every", type=COUNT, default=120, help="steps between evaluations")
    add("--eval-tokens", type=whole(1, 10**12), default=2_000_000, help="validation tokens to evaluate on, at most")
    add("--patience", type=COUNT, help="end after so many evaluations without a new best")
    add("--seed", type=whole(0, 2**31), default=1337, help="of initial weights, batches and dropout")


def add_optimizer_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimizer").add_argument
    add("--optimizer", type=one_of("muon", "adamw"), default="muon", help="muon is for blocks only, AdamW for the rest")
    add("--lr", type=RATE, default=6e-3, help="AdamW's peak learning rate")
    add("--muon-lr", type=RATE, default=0.02, help="Muon's peak learning rate")
    add("--muon-momentum", type=SHARE, default=0.9, help="Muon's momentum")
    add("--weight-decay", type=number(low=0, high=100), default=0.1, help="of matrices; with muon the blocks' only")
    add("--grad-clip", type=number(above=0), default=1.0, help="largest gradient norm; larger ones are scaled down")
    add("--warmup", type=whole(0, MAX_STEPS), default=24, help="steps at the start, in which the learning rate rises")
    add("--schedule", type=one_of("linear", "cosine"), default="linear", help="how the rate falls: to 0, or to a tenth")
    add("--cooldown", type=number(0, 1), default=1.0, help="the learning rate falls in this last share of the steps")
    add("--distill", type=SHARE, default=0.0, help="share of the loss that follows the average's predictions")
    add("--ema-decay", type=SHARE, default=0.0, help="validate and keep a moving average of the weights (0: none)")


def add_lora_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("LoRA").add_argument
    add("--lora-rank", type=whole(1, 2**14), help="train only adapters of this rank (with --init-from)")
    add("--lora-alpha", type=number(above=0, high=1e6), default=16.0, help="adapters are multiplied by alpha / rank")
    add("--lora-dropout", type=SHARE, default=0.0, help="probability of dropping an adapter's input")
    add("--lora-targets", type=text, default="qkv,out,up,down", help="which matrices of a block")


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", type=text, default=AUTO, help="cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu")
    add("--dtype", type=one_of(AUTO, "float32", "bfloat16", "float16"), default=AUTO, help="of products; auto: fastest")
    add("--compile", action=YES_NO, default=None, help="torch.compile (default: on NVIDIA GPUs)")


FLAGS = (add_corpus_flags, add_file_flags, add_training_flags, add_optimizer_flags, add_network_flags, add_lora_flags)
FLAGS += (add_machine_flags,)


def make_parser(description: str = "") -> Parser:
    """The parser of main.py."""
    parser = Parser(description)
    for add_flags in FLAGS:
        add_flags(parser)
    return parser


def parse_flags(arguments: list[str] | None = None, description: str = "") -> tuple[argparse.Namespace, set[str]]:
    """The settings that a command line asks for, and the names of those that it gives itself.

    Raises UserError that names the flag if a value is out of bounds or does not go with the others.
    """
    given = given_flags(make_parser(description), arguments)
    chosen = given.get("preset", AUTO) != AUTO
    preset = given["preset"] if chosen else usual_preset(given)
    settings = argparse.Namespace(**vars(preset_settings(preset)) | given | {"preset": preset})
    if settings.minutes and "steps" in given:
        raise UserError("--minutes and --steps exclude each other: leave one out")
    if not chosen and not given.keys() & {"minutes", "steps", "resume"}:
        settings.minutes = DEFAULT_MINUTES
    if settings.minutes:  # until the warm-up has shown how many steps fit: see training/plan.py
        settings.steps, settings.eval_every = MAX_STEPS, given.get("eval_every", MAX_STEPS)
    if settings.minutes and not chosen:
        settings.epochs = given.get("epochs", settings.epochs or MAX_EPOCHS)
    if "steps" in given and "warmup" not in given and settings.steps <= settings.warmup:
        settings.warmup = settings.steps // 10
    if "steps" in given and "epochs" not in given:
        settings.epochs = 0.0
    if not settings.resume:  # then the saved ones count
        check_together(settings)
        if settings.minutes and settings.warmup < MIN_WARMUP:
            raise UserError(f"to plan by time, --warmup must be {MIN_WARMUP} or more; or give --steps")
        needed = {"tune": settings.init_from, "lora": settings.lora_rank}  # by the presets that fine-tune
        if not needed.get(settings.preset, True):
            raise UserError(f"--preset {settings.preset} fine-tunes: it needs --init-from, and lora also --lora-rank")
    return settings, set(given)


def preset_settings(preset: str) -> argparse.Namespace:
    """The settings of `--preset PRESET` and no other flag."""
    parser = make_parser()
    parser.set_defaults(**PRESETS[preset])
    return parser.parse_args([])


def usual_preset(given: dict) -> str:
    """The preset for this text, this machine, and the time that there is.

    plain if the network is another one. small, or short for a short text, on a CPU whose speed does not count: with
    --steps, and for several processes, which must agree, and might measure different speeds.
    """
    if "init_from" in given:
        return "lora" if "lora_rank" in given else "tune"
    if given.keys() & {"resume", "embed_dim", "num_heads", "num_layers"}:
        return "plain"
    device = pick_device(given.get("device", AUTO))
    characters = text_size(given.get("data", []), given.get("glob", GLOB))
    short = 0 < characters < SHORT_TEXT
    if device.type != "cpu" or "steps" in given or "RANK" in os.environ:
        return "short" if short else "base" if device.type == "cuda" else "small"
    rate = product_rate(device, pick_dtype(given.get("dtype", AUTO), device))
    tflop = 60 * given.get("minutes", DEFAULT_MINUTES) * rate
    if short:
        return next(preset for preset, limit in MAX_TFLOP_PER_CHARACTER.items() if tflop <= limit * characters)
    return next(preset for preset, limit in MAX_TFLOP.items() if tflop <= limit)


def check_together(settings: argparse.Namespace) -> None:
    """Raise UserError that names the flags if settings that are each in bounds do not go together."""
    if not settings.init_from and settings.embed_dim % settings.num_heads:
        raise UserError(f"--embed-dim {settings.embed_dim} must be divisible by --num-heads {settings.num_heads}")
    if settings.distill and not settings.ema_decay:
        raise UserError("--distill needs --ema-decay: the average of the weights is the teacher")
    if settings.lora_rank and not settings.init_from:
        raise UserError("--lora-rank needs --init-from: adapters change a model that is there")
    for name in ("lora_alpha", "lora_dropout", "lora_targets"):
        if not settings.lora_rank and getattr(settings, name) != make_parser().get_default(name):
            raise UserError(f"{flag_of(name)} needs --lora-rank")


# --- The schedule ------------------------------------------------------------------------------------------------


def distill_share(step: int, settings: argparse.Namespace) -> float:
    """How much of the loss at `step` follows the predictions of the weights' moving average: nothing in the warm-up,
    then more and more, because at first the average knows little; --distill after three tenths of the steps.

    In the warm-up, the number of steps may not be known: what depends on it begins later. The teacher
    computes from the start all the same, so that a planned run knows what a step takes.
    """
    return settings.distill * min(1.0, step / (0.3 * settings.steps)) if step >= settings.warmup else 0.0


def lr_factor(step: int, settings: argparse.Namespace) -> float:
    """The learning rate at `step` as a share of its peak: a linear rise (warm-up), the peak, then the schedule's fall.

    At first the optimizers' running means know few gradients, and the random weights give large ones: full steps would
    go far in a wrong direction (Liu et al. 2019, https://arxiv.org/abs/1908.03265). At the end, large steps jump
    about the minimum; falling to zero lets the weights settle. The cosine to a tenth is nanoGPT's.
    """
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    start = max(1, settings.warmup, round((1 - settings.cooldown) * settings.steps))  # of the fall
    progress = min(1.0, max(0, step - start) / max(1, settings.steps - start))
    if settings.schedule == "cosine":
        return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
    return 1 - progress
