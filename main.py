"""Train a TinyGPT.

python main.py                             # device, corpus and preset chosen for this machine
python main.py --data my.txt --steps 500
python main.py --resume                    # go on where the last run stopped, to the last bit
torchrun --standalone --nproc-per-node 2 main.py       # two processes: see distributed.py
"""

import contextlib
import json
import math
import os
import signal
import time

import numpy as np
import torch
from tqdm import tqdm

from data_setup import batch_starts, consecutive_windows, noise_tokens
from recipe import (
    PRESETS,
    TrainSettings,
    clip_gradients,
    lr_factor,
    noise_share,
    set_learning_rates,
)
from sampler import Sampling, generate, row_generators
from sampling.decode import Reader
from support import command as cli
from support.command import StopSignal
from support.device import describe_device, to_device
from tiny_decoder import next_token_loss
from tokenizer import CharTokenizer
from training.distributed import joined
from training.run import Run, next_command, open_run, save_best, save_training, where_kept

# How far above its best the validation loss may rise, in nats per token, before a note says so.
OVERFITTING = 0.02


# --- Training --------------------------------------------------------------------------------------------------------


def autocast(run: Run) -> contextlib.AbstractContextManager:
    """Matrix products in the run's precision, the rest in float32."""
    return torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32)


def compute_gradients(run: Run) -> float:
    """Leave the mean gradient of the whole batch in the weights' `.grad`; returns its mean loss in nats per token."""
    settings, ranks = run.settings, run.ranks
    # All that is random depends on (seed, step, rank) alone, so a resumed run draws what an uninterrupted one would.
    starts = batch_starts(
        run.train_set, settings.batch_size, settings.seed, run.step, ranks.rank, ranks.size, settings.windows
    )
    share = noise_share(run.step, settings)
    noise = noise_tokens(run.train_set, settings.batch_size, share, settings.seed, run.step, ranks.rank, ranks.size)
    noise = torch.from_numpy(noise).chunk(settings.grad_accum)
    torch.manual_seed((settings.seed * 1_000_003 + run.step) * ranks.size + ranks.rank)
    run.network.train()
    total = 0.0
    for part in range(settings.grad_accum):
        inputs, targets = run.train_set.batch(np.split(starts, settings.grad_accum)[part])
        inputs = torch.where(noise[part] < 0, inputs, noise[part])
        inputs, targets = to_device(inputs, run.device), to_device(targets, run.device)
        with ranks.sends_gradients(run.network, wanted=part == settings.grad_accum - 1):
            with autocast(run):
                logits = run.network(inputs)
            loss = next_token_loss(logits, targets) / settings.grad_accum
            loss.backward()
        total += loss.item()
    return float(ranks.sum(total)) / ranks.size  # not finite on one rank, not finite on all: they stop together


def train_step(run: Run) -> float:
    """One update of the weights; returns the whole batch's mean loss in nats per token.

    Raises FloatingPointError, before anything is changed, if the loss or the gradient is not finite.
    """
    settings = run.settings
    total = compute_gradients(run)
    norm = clip_gradients(run.model, settings.clip)
    if not math.isfinite(total) or not math.isfinite(norm):
        rate = settings.lr * lr_factor(run.step, settings)
        muon = " and --muon-lr" if len(run.optimizers) > 1 else ""
        raise FloatingPointError(
            f"step {run.step}: the loss is {total}, the gradient's norm {norm}; nothing was updated. "
            f"Try a smaller --lr (now {rate:.4g}, {settings.lr:g} at its peak){muon}, or --dtype float32"
        )
    set_learning_rates(run.optimizers, lr_factor(run.step, settings))
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.step += 1
    if run.average:
        run.average.update(run.step)
    return total


@torch.inference_mode()
def evaluate(run: Run) -> float:
    """Mean loss in nats per token over the whole validation split, cut into consecutive windows of max_seq."""
    run.model.eval()
    losses, count = [], 0
    for number, (x, y) in enumerate(consecutive_windows(run.val_tokens, run.settings.max_seq)):
        losses.append(0.0)
        count += y.numel()
        if number % run.ranks.size == run.ranks.rank:
            with autocast(run):
                logits = run.model(to_device(x, run.device))
            losses[-1] = next_token_loss(logits, to_device(y, run.device)).item() * y.numel()
    return sum(run.ranks.sum(np.array(losses)).tolist()) / count  # in the same order, however many ranks there are


def sample_text(run: Run, length: int, seed: int = 0) -> str:
    """What the model writes from its start token."""
    reader = Reader(run.model, [[run.tokenizer.start_id]])
    steps = generate(reader, length, row_generators(seed, 1), Sampling(temperature=0.8), run.tokenizer.special_ids)
    return run.tokenizer.decode([token for (token,) in steps])


def train(run: Run, stop: StopSignal) -> int:
    """The loop: step, now and then evaluate and save, until the last step or a signal, which is returned."""
    settings = run.settings
    end = min(settings.steps, settings.stop_at or settings.steps)
    losses, mark = [], time.perf_counter()
    signum = 0
    if run.ranks.size > 1:
        # The first backward decides in which order gradients travel, and with it in which order three and more ranks
        # are summed. With it out of the way, the first step after a resume rounds like every other.
        compute_gradients(run)
        run.network.zero_grad(set_to_none=True)
    with tqdm(total=settings.steps, initial=run.step, unit="step", disable=None, dynamic_ncols=True) as bar:
        while run.step < end and not (
            signum := run.ranks.largest(signal.SIGTERM if run.ranks.abandoned else stop.signum)
        ):
            losses.append(train_step(run))
            bar.update()
            evaluation_due = run.step % settings.eval_every == 0 or run.step == settings.steps
            if evaluation_due or len(losses) % 10 == 0:
                speed = len(losses) * settings.batch_size * settings.max_seq / (time.perf_counter() - mark)
                bar.set_postfix_str(f"loss {np.mean(losses[-10:]):.3f}, {speed:,.0f} tokens/s", refresh=False)
            if evaluation_due:
                seconds = time.perf_counter() - mark
                run.train_seconds += seconds
                report(run, np.mean(losses), seconds / len(losses))
                losses, mark = [], time.perf_counter()
    if losses or not run.saved_in:
        run.train_seconds += time.perf_counter() - mark
        save_training(run)
    return signum


def comparable_losses(run: Run, val_loss: float) -> dict[str, float]:
    """The validation loss in units that do not depend on the tokenizer; nothing for characters, whose loss is one."""
    if run.tokenizer.kind == CharTokenizer.kind:
        return {}
    nats = val_loss * (len(run.val_tokens) - 1)
    return {
        "val_nats_per_character": nats / len(run.corpus.val),
        "val_bits_per_byte": nats / math.log(2) / run.val_bytes,
    }


def metrics_line(run: Run, train_loss: float, val_loss: float, seconds_per_step: float) -> dict[str, float]:
    """What `NAME.metrics.jsonl` says about the step."""
    settings = run.settings
    return {
        "step": run.step,
        "tokens": run.step * settings.batch_size * settings.max_seq,
        "train_seconds": round(run.train_seconds, 3),
        "train_loss": float(train_loss),
        "val_loss": val_loss,
        "lr": settings.lr * lr_factor(run.step - 1, settings),
        "tokens_per_second": round(settings.batch_size * settings.max_seq / seconds_per_step, 1),
    }


def report(run: Run, train_loss: float, seconds_per_step: float) -> None:
    """Evaluate, write the metrics line, save the best model and the training state, and only then print the step."""
    with run.weights_to_keep():
        val_loss = evaluate(run)
        if not math.isfinite(val_loss):
            raise FloatingPointError(
                f"step {run.step}: the validation loss is {val_loss}. Try a smaller --lr (now {run.settings.lr})"
            )
        better = val_loss < run.best_loss
        if better:
            run.best_loss, run.best_step = val_loss, run.step
            run.overfitting_said = False
        comparable = comparable_losses(run, val_loss)
        line = metrics_line(run, train_loss, val_loss, seconds_per_step) | comparable
        if run.ranks.first:
            with open(run.paths.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if better:
                save_best(run)
    save_training(run)
    with run.weights_to_keep():
        sample = sample_text(run, 120)
    floor = f" (floor {run.corpus.floor:.4f})" if run.corpus.floor else ""
    mark = " *" if better else ""
    units = "".join(
        f", {value:.4f} {name.removeprefix('val_').replace('_', ' ')}" for name, value in comparable.items()
    )
    tqdm.write(
        f"step {run.step:5d} | train {train_loss:.4f} | val {val_loss:.4f}{units}{floor}{mark} | "
        f"{line['tokens_per_second']:,.0f} tokens/s | {run.train_seconds:.0f} s"
    )
    tqdm.write("    " + sample.strip().replace("\n", "\n    "))
    rise = val_loss - run.best_loss
    if rise > OVERFITTING and not run.overfitting_said:
        run.overfitting_said = True
        tqdm.write(
            f"NOTE: validation is {rise:.3f} above its best, at step {run.best_step}, whose weights are kept. If it "
            "goes on rising, the model learns its text by heart: try more text, more --dropout or fewer --steps"
        )


# --- The command -----------------------------------------------------------------------------------------------------


def parse_flags(arguments: list[str] | None = None) -> dict:
    """The settings that the command line gives, and only those."""
    parser = cli.Parser(__doc__)
    cli.add_flags(parser, TrainSettings, varies=frozenset().union(*PRESETS.values()))
    return cli.given_flags(parser.parse_args(arguments))


def announce(run: Run) -> None:
    """Say what was chosen."""
    settings = run.settings
    corpus = run.corpus
    tokens = settings.steps * settings.batch_size * settings.max_seq
    print(
        f"corpus   {corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.val):,} to validate\n"
        f"model    {run.model.num_parameters():,} parameters: {settings.num_layers} layers x {settings.embed_dim}, "
        f"{settings.num_heads} heads, window {settings.max_seq}, {run.tokenizer.vocab_size} tokens in the vocabulary\n"
        f"recipe   {settings.preset}: {settings.steps:,} steps of {settings.batch_size} windows, {tokens:,} tokens\n"
        f"machine  {describe_device(run.device)}, {str(run.dtype).removeprefix('torch.')}"
        f"{', compiled' if run.compiled else ''}"
    )
    if run.ranks.size > 1:
        share = settings.batch_size // run.ranks.size
        print(f"ranks    {run.ranks.size} processes like this one, {share} windows of each step for each")
    if settings.lora_rank:
        trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
        print(f"adapter  rank {settings.lora_rank} on {settings.lora_targets}: {trained:,} parameters are trained")
    if corpus.floor:
        print(f"floor    {corpus.floor:.4f} nats per character: no honest model validates below it")
    if run.step:
        print(f"resuming at step {run.step}")


def interruption(run: Run, told: bool, signum: int) -> Exception:
    """What ends a run that a signal has stopped; `told` is whether this rank got it."""
    number = int(run.ranks.sum(float(told)))
    if 0 < number < run.ranks.size:  # not by way of torchrun, which tells all
        return ChildProcessError(
            f"{number} of {run.ranks.size} processes got {signal.Signals(signum).name}; {where_kept(run)}"
        )
    return cli.Interrupted(signum, where_kept(run))


def main() -> None:
    """The command."""
    with contextlib.ExitStack() as held:
        ranks = held.enter_context(joined())
        run = open_run(parse_flags(), held, ranks)
        announce(run)
        try:
            with StopSignal() as stop, ranks.faults_named():
                signum = train(run, stop)
        except KeyboardInterrupt:
            raise cli.Interrupted(signal.SIGINT, where_kept(run)) from None
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {where_kept(run)}") from None
        except OSError as error:
            raise OSError(f"{cli.one_line(error)}; {where_kept(run)}") from None
        if run.step < run.settings.steps:
            if signum:
                raise interruption(run, stop.signum != 0, signum)
            print(where_kept(run))
            return
        print(
            f"best validation loss {run.best_loss:.4f} at step {run.best_step}, {run.train_seconds:.0f} s of training"
        )
        prompt = ' --prompt "ROMEO:"' if run.corpus.name == "tinyshakespeare" else ""
        print(f"sample from it with: {next_command(run, 'generate.py')}{prompt}")


if __name__ == "__main__":
    cli.run(main)
