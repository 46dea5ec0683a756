"""How a run is saved, and what its user is told about that."""

import contextlib
import shlex
import signal
from collections.abc import Iterator

import torch

from formats.adapter import adapter_weights, base_weights, save_adapter
from formats.checkpoint import TRAINING, model_header, save_model, write_checkpoint
from lora import lora_config
from recipe import make_parser
from support.command import Interrupted, one_line
from training.optimizer_state import optimizer_tensors, trained_parameters
from training.run import Run

# The settings that a model's origin tells; where files lie, and what machine it was, is nobody's business.
RECIPE = ["steps", "batch_size", "windows", "optimizer", "lr", "muon_lr", "weight_decay", "warmup"]
RECIPE += ["schedule", "cooldown", "ema_decay", "init", "dtype"]


def origin_of(run: Run) -> dict:
    """Where a checkpoint came from, for people who find the file later."""
    return {
        "corpus": run.corpus.name,
        "corpus_sha256": run.corpus.sha256,
        "preset": run.settings.preset,
        "step": run.state.step,
        "val_loss": run.state.to_plain()["best_loss"],
        "train_seconds": run.state.train_seconds,
        "seed": run.settings.seed,
        "torch": str(torch.__version__),
        "bigram_entropy": run.bigram_entropy,
        "floor": run.corpus.floor,
        "recipe": {name: getattr(run.settings, name) for name in RECIPE},
    }


def save_best(run: Run) -> None:
    """Write what sampling needs: the model, or its adapters if only they are trained; rank 0 does so for all."""
    if not run.dist.first:
        return
    if config := lora_config(run.settings):
        save_adapter(run.files.best, run.model_to_keep, run.tokenizer, config, origin_of(run))
    else:
        save_model(run.files.best, run.model_to_keep, run.tokenizer, origin_of(run))


def save_state(run: Run) -> None:
    """Write the training state that `resume_run` reads; rank 0 does so for all."""
    tensors = base_weights(run.model)
    tensors |= {f"adapter/{name}": tensor for name, tensor in adapter_weights(run.model).items()}
    tensors |= {f"optimizer/{name}": tensor.cpu() for name, tensor in optimizer_tensors(run.optimizers).items()}
    if run.average:
        trained = trained_parameters(run.average.module)
        tensors |= {f"average/{name}": p.detach().cpu() for name, p in trained.items()}
    header = model_header(run.model.config, run.tokenizer, origin_of(run), TRAINING)
    header |= {"settings": vars(run.settings), "training": run.state.to_plain()}
    previous = run.files.previous if run.saved_in == run.files.last else None  # a damaged one must not push out a whole
    if run.dist.first:
        write_checkpoint(run.files.last, header, tensors, previous)
    run.saved_in, run.saved_step = run.files.last, run.state.step


def where_kept(run: Run) -> str:
    """What a user still has after a failure."""
    last, step, steps = run.files.last, run.saved_step, run.settings.steps
    if not run.saved_in:
        return "no training state of this run was saved yet"
    if run.dist.first and not run.saved_in.is_file():
        earlier = f"; --resume continues from {run.files.previous}" if run.files.previous.is_file() else ""
        return f"{run.saved_in} was saved at step {step} and is gone{earlier}"
    if run.saved_in == last and step >= steps:
        return f"saved at step {step} of {steps}, the last; sample from it with: {next_command(run, 'generate.py')}"
    return f"saved at step {step} of {steps}; continue with: {next_command(run, 'main.py --resume')}"


@contextlib.contextmanager
def names_what_is_kept(run: Run) -> Iterator[None]:
    """Within it, an exception that ends the run also says what was saved."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, where_kept(run)) from None
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; {where_kept(run)}") from None
    except OSError as error:
        raise OSError(f"{one_line(error)}; {where_kept(run)}") from None


def next_command(run: Run, command: str) -> str:
    """A command line for the user to type, with --out or --checkpoint only where it is not the default."""
    flag = {"main.py --resume": "--out", "generate.py": "--checkpoint"}[command]
    best = shlex.quote(str(run.files.best))
    if run.settings.lora_rank and command == "generate.py":
        return f"python generate.py --checkpoint {shlex.quote(run.settings.init_from)} --lora {best}"
    start = "torchrun …" if run.dist.size > 1 and flag == "--out" else "python"
    return f"{start} {command}" + (f" {flag} {best}" if run.settings.out != make_parser().get_default("out") else "")
