"""Train a TinyGPT.

examples:
  python main.py                                # corpus, device and preset chosen for this machine; five minutes
  python main.py --data my.txt --steps 500
  python main.py --resume                       # continue where the last run stopped
  torchrun --standalone --nproc-per-node 2 main.py
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

import contextlib
import math
import signal
import time

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data_setup import batch_starts, consecutive_windows, noise_tokens
from optimizers import set_learning_rates
from recipe import lr_factor, noise_share, parse_flags
from sampler import Sampling, SlidingWindow, generate, row_generators
from support.command import Interrupted, StopSignal, one_line
from support.command import run as run_command
from support.device import keep_freed_memory, to_device
from tiny_decoder import next_token_loss
from training.distributed import joined
from training.plan import plan_steps, seconds_of
from training.report import announce, finish, interruption, log_metrics, overfitting_note, print_progress, print_step
from training.run import Run, open_run
from training.save import save_best, save_state, where_kept

STARTED = time.perf_counter()
EVAL_LOGITS = 2**26  # logits that one batch of an evaluation may have: 256 MiB in float32


# --- Training --------------------------------------------------------------------------------------------------------


def train(run: Run, stop: StopSignal) -> int:
    """Train until the last step or a stop signal; evaluate and save every eval_every steps. Returns the signal, or 0.

    run.model holds the weights; run.network is the same model, compiled and shared among processes where that is asked
    for; run.model_to_keep is what is evaluated and saved: the model, or the moving average of its weights.
    """
    settings, state = run.settings, run.state
    step_seconds = []  # until the plan is made
    # with several processes, the first gradients fix the order in which later ones are summed
    run.dist.settle_gradient_order(run.network, lambda: compute_gradients(run))
    mark = time.perf_counter()
    signum = stop_requested(run, stop)
    with tqdm(total=settings.steps, initial=state.step, unit="step", disable=None, dynamic_ncols=True) as bar:
        while state.step < min(settings.steps, settings.stop_at or settings.steps) and not signum:
            if not state.planned and state.step >= settings.warmup:
                mark += seconds_of(lambda: plan(run, step_seconds))
                bar.total = settings.steps
            began = time.perf_counter()
            loss = train_step(run)
            if not state.planned:
                step_seconds.append(time.perf_counter() - began)
            state.loss_sum, state.loss_steps = state.loss_sum + loss, state.loss_steps + 1
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            print_progress(run, loss)
            if state.step % settings.eval_every == 0 or state.step == settings.steps:
                count_seconds(run, mark)
                val_loss = evaluate(run)
                better = note_best(run, val_loss)
                line = log_metrics(run, val_loss)
                if better:
                    save_best(run)
                note = overfitting_note(run, val_loss)
                state.loss_sum, state.loss_steps, state.seconds_sum = 0.0, 0, 0.0
                save_state(run)
                print_step(run, line, better, sample_text(run), note)
                mark = time.perf_counter()
                if settings.patience and state.stale >= settings.patience:
                    break
            signum = stop_requested(run, stop)
    if run.saved_step < state.step or not run.saved_in:
        count_seconds(run, mark)
        save_state(run)
    return signum


def train_step(run: Run) -> float:
    """One update of the weights; returns the whole batch's mean loss in nats per token.

    Raises FloatingPointError, before anything is changed, if the loss or the gradient is not finite.
    """
    settings, state = run.settings, run.state
    loss = compute_gradients(run)
    norm = float(nn.utils.clip_grad_norm_(run.model.parameters(), settings.grad_clip))
    factor = lr_factor(state.step, settings)  # of the peak learning rates
    if not math.isfinite(loss) or not math.isfinite(norm):
        muon = " and --muon-lr" if len(run.optimizers) > 1 else ""
        raise FloatingPointError(
            f"step {state.step}: the loss is {loss}, the gradient's norm {norm}; nothing was updated. "
            f"Try a smaller --lr (now {settings.lr * factor:.4g}, at its peak {settings.lr:g}){muon} or --dtype float32"
        )
    set_learning_rates(run.optimizers, factor)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if run.average:
        run.average.update_parameters(run.model)
    return loss


def compute_gradients(run: Run) -> float:
    """Leave the mean gradient of the whole batch in the weights' `.grad`; returns its mean loss in nats per token.

    All that is random depends on seed, step, rank and the number of ranks alone, so a resumed run samples the same.
    """
    settings, dist, step = run.settings, run.dist, run.state.step
    place = (settings.seed, step, dist.rank, dist.size)
    starts = batch_starts(run.train_set, settings.batch_size, *place, settings.windows)
    noise = noise_tokens(run.train_set, settings.batch_size, noise_share(step, settings), *place)
    torch.manual_seed((settings.seed * 1_000_003 + step) * dist.size + dist.rank)
    run.network.train()
    total, parts = 0.0, settings.grad_accum
    for number in range(parts):
        # batch
        inputs, targets = run.train_set.batch(np.split(starts, parts)[number])  # (B, T) both
        replaced = torch.from_numpy(np.split(noise, parts)[number])
        inputs = torch.where(replaced < 0, inputs, replaced)
        inputs, targets = to_device(inputs, run.device), to_device(targets, run.device)
        with dist.sends_gradients(run.network, wanted=number == parts - 1):
            # forward
            with run.autocast():
                logits = run.network(inputs)
            loss = next_token_loss(logits, targets) / parts
            # backward
            loss.backward()
        total += loss.item()
    return float(dist.sum(total)) / dist.size  # not finite on one rank, not finite on all: they stop together


def stop_requested(run: Run, stop: StopSignal) -> int:
    """The signal that ends the run, on whichever rank it came, or 0; all ranks agree on it."""
    return run.dist.largest(signal.SIGTERM if run.dist.abandoned else stop.signum)


def plan(run: Run, step_seconds: list[float]) -> None:
    """Fix the number of steps, if --minutes leaves it open, and say how long the run will take."""
    elapsed = time.perf_counter() - STARTED
    plan_steps(run, step_seconds, elapsed, lambda: compute_gradients(run), lambda: (evaluate(run), sample_text(run)))


def count_seconds(run: Run, mark: float) -> None:
    """Add the time since `mark` to the seconds of training."""
    seconds = time.perf_counter() - mark
    run.state.train_seconds += seconds
    run.state.seconds_sum += seconds


# --- At an evaluation ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(run: Run) -> float:
    """Mean loss in nats per token over the validation split, cut into consecutive windows of max_seq.

    Raises FloatingPointError if it is not finite.
    """
    settings, dist = run.settings, run.dist
    model = run.model_to_keep.eval()
    batch_tokens = min(2**14, EVAL_LOGITS // run.tokenizer.vocab_size)
    losses, count = [], 0
    batches = consecutive_windows(run.val_tokens, settings.max_seq, batch_tokens, settings.eval_tokens)
    for number, (inputs, targets) in enumerate(batches):
        losses.append(0.0)
        count += targets.numel()
        if number % dist.size == dist.rank:
            with run.autocast():
                logits = model(to_device(inputs, run.device))
            losses[-1] = next_token_loss(logits, to_device(targets, run.device)).item() * targets.numel()
    val_loss = sum(dist.sum(np.array(losses)).tolist()) / count  # in the same order, however many ranks there are
    if not math.isfinite(val_loss):
        raise FloatingPointError(
            f"step {run.state.step}: the validation loss is {val_loss}. Try a smaller --lr (peak {settings.lr:g})"
        )
    return val_loss


def note_best(run: Run, val_loss: float) -> bool:
    """Whether this is the lowest validation loss so far; if so, remember it."""
    better = val_loss < run.state.best_loss
    run.state.stale = 0 if better else run.state.stale + 1
    if better:
        run.state.best_loss, run.state.best_step = val_loss, run.state.step
        run.state.overfitting_noted = False
    return better


def sample_text(run: Run, length: int = 120, seed: int = 0) -> str:
    """What the model writes from its start token."""
    window = SlidingWindow(run.model_to_keep, [[run.tokenizer.start_id]])
    steps = generate(window, length, row_generators(seed, 1), Sampling(temperature=0.8), run.tokenizer.special_ids)
    return run.tokenizer.decode([token for (token,) in steps])


# --- The command -----------------------------------------------------------------------------------------------------


def main() -> None:
    """The command."""
    settings, given = parse_flags(description=__doc__)
    with contextlib.ExitStack() as held:
        dist = held.enter_context(joined())
        keep_freed_memory()
        run = open_run(settings, given, held, dist)
        announce(run)
        try:
            with StopSignal(shielded=dist.size > 1) as stop, dist.faults_named():
                signum = train(run, stop)
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, where_kept(run)) from None
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {where_kept(run)}") from None
        except OSError as error:
            raise OSError(f"{one_line(error)}; {where_kept(run)}") from None
        if signum and run.state.step < run.settings.steps:
            raise interruption(run, stop.signum != 0, signum)
        finish(run)


if __name__ == "__main__":
    run_command(main)
