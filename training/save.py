"""How a run is saved, and what its user is told about that."""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

from formats.adapter import adapter_weights, base_weights, save_adapter
from formats.checkpoint import TRAINING, model_header, save_model, write_checkpoint
from lora import lora_config
from recipe import MAX_STEPS, make_parser
from support import start
from support.command import Interrupted, typed
from training.optimizer_state import optimizer_tensors, trained_parameters
from training.run import Run

# The settings that a model's origin tells; where files lie, and what machine it was, is nobody's business.
RECIPE = ["steps", "epochs", "batch_size", "windows", "optimizer", "lr", "muon_lr", "muon_momentum", "weight_decay"]
RECIPE += ["warmup", "schedule", "cooldown", "ema_decay", "distill", "init", "dtype"]


def origin_of(run: Run) -> dict:
    """Where a checkpoint came from, for people who find the file later."""
    return {
        "corpus": ", ".join(Path(word).absolute().name for word in run.settings.data),
        "documents": run.settings.documents,
        "glob": None if run.settings.glob == make_parser().get_default("glob") else run.settings.glob,
        "corpus_sha256": run.corpus.sha256,
        "preset": run.settings.preset,
        "step": run.state.step,
        "val_loss": run.state.best_loss,
        "train_seconds": run.state.train_seconds,
        "seed": run.settings.seed,
        "bigram_entropy": run.bigram_entropy,
        "floor": run.corpus.floor if run.tokenizer.kind == "char" else None,  # it is in nats per character
        "recipe": {name: getattr(run.settings, name) for name in RECIPE},
    }


def save_best(run: Run) -> None:
    """Write what sampling needs: the model, or its adapters if only they are trained; rank 0 does so for all."""
    if not run.dist.first:
        return
    if config := lora_config(run.settings):
        base = (run.state.base, run.state.new_characters)
        save_adapter(run.files.best, run.model_to_keep, run.tokenizer, config, origin_of(run), *base)
    else:
        save_model(run.files.best, run.model_to_keep, run.tokenizer, origin_of(run))


def save_state(run: Run) -> None:
    """Write the training state that `training.start.resume` reads; rank 0 does so for all."""
    tensors = base_weights(run.model)
    tensors |= {f"adapter/{name}": tensor for name, tensor in adapter_weights(run.model).items()}
    tensors |= {f"optimizer/{name}": tensor.cpu() for name, tensor in optimizer_tensors(run.optimizers).items()}
    if run.average:
        trained = trained_parameters(run.average.module)
        tensors |= {f"average/{name}": p.detach().cpu() for name, p in trained.items()}
    if run.scaler.is_enabled():
        scaler = run.scaler.state_dict()
        run.state.loss_scale, run.state.scale_steps = scaler["scale"], scaler["_growth_tracker"]
    header = model_header(run.model.config, run.tokenizer, origin_of(run), TRAINING)
    header |= {"settings": vars(run.settings), "training": dataclasses.asdict(run.state)}
    previous = run.files.previous if run.saved_in == run.files.last else None  # a damaged one must not push out a whole
    if run.dist.first:
        write_checkpoint(run.files.last, header, tensors, previous)
    run.saved_in, run.saved_step = run.files.last, run.state.step


def where_kept(run: Run) -> str:
    """What a user still has after a failure."""
    step, steps = run.saved_step, run.settings.steps
    if not run.saved_in:
        return "this run has not saved a training state yet"
    if step >= steps and not run.state.evaluation_due(run.settings):
        return f"saved at step {step} of {steps}, the last; sample from it with: {sample_command(run)}"
    launcher = "torchrun …" if run.dist.size > 1 else "python"
    again = typed([start.beside_scripts("main.py"), "--resume", *flag_of_out(run, "--out")])
    of_steps = f" of {steps}" if steps < MAX_STEPS else ""  # not yet planned
    return f"saved at step {step}{of_steps}; continue with: {launcher} {again}"


@contextlib.contextmanager
def saved_if_it_fails(run: Run) -> Iterator[None]:
    """Within it the weights do not change. If what is done with them fails, they are saved: no step is lost.

    The state goes back to what it was, so that a resumed run does all of it again.
    """
    before = dataclasses.replace(run.state)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if run.saved_step < run.state.step and not isinstance(error, FloatingPointError):  # after which none are of use
            vars(run.state).update(vars(before))
            with contextlib.suppress(Exception):  # the disk may be what failed
                save_state(run)
        raise


@contextlib.contextmanager
def names_what_is_kept(run: Run) -> Iterator[None]:
    """Within it, an exception that ends the run also says what was saved."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, where_kept(run)) from None
    except Exception as error:
        error.kept = f"; {where_kept(run)}"  # `support.command.run` prints it
        raise


def sample_command(run: Run) -> str:
    """A command line that samples from the best model."""
    adapted = ["--checkpoint", run.settings.init_from, "--lora", run.settings.out]
    return typed_command("generate.py", *(adapted if run.settings.lora_rank else flag_of_out(run, "--checkpoint")))


def typed_command(script: str, *words: str) -> str:
    """A command line of one of our scripts, which can be typed in the folder where this run was started."""
    return typed(["python", start.beside_scripts(script), *words])


def flag_of_out(run: Run, flag: str) -> list[str]:
    """The flag with the best model's path, or nothing where that is the default."""
    return [flag, run.settings.out] if run.settings.out != make_parser().get_default("out") else []
