"""What a training run tells its user, and its metrics file."""

import json
import math
import os
import signal

from tqdm import tqdm

from recipe import lr_factor
from support.command import Interrupted
from support.device import describe_device
from tokenizer import CharTokenizer
from training.run import Run
from training.save import where_kept

# How far above its best the validation loss may rise, in nats per token, before a note says so.
OVERFITTING = 0.02


def announce(run: Run) -> None:
    """Say what was chosen."""
    settings, corpus = run.settings, run.corpus
    tokens = settings.steps * settings.batch_size * settings.max_seq
    print(
        f"corpus   {corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.val):,} to validate\n"
        f"model    {run.model.num_parameters():,} parameters: {settings.num_layers} layers x {settings.embed_dim}, "
        f"{settings.num_heads} heads, window {settings.max_seq}, {run.tokenizer.vocab_size} tokens in the vocabulary\n"
        f"recipe   {settings.preset}: {settings.steps:,} steps of {settings.batch_size} windows, {tokens:,} tokens\n"
        f"machine  {describe_device(run.device)}, {settings.dtype}{', compiled' if run.compiled else ''}"
    )
    if run.dist.size > 1:
        share = settings.batch_size // run.dist.size
        print(f"ranks    {run.dist.size} processes like this one, {share} windows of each step for each")
    if settings.lora_rank:
        trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
        print(f"adapter  rank {settings.lora_rank} on {settings.lora_targets}: {trained:,} parameters are trained")
    if corpus.floor:
        print(f"floor    {corpus.floor:.4f} nats per character: no honest model validates below it")
    if run.state.step:
        print(f"resuming at step {run.state.step}")


def comparable_losses(run: Run, val_loss: float) -> dict[str, float]:
    """The validation loss in units that do not depend on the tokenizer; nothing for characters, whose loss is one."""
    if run.tokenizer.kind == CharTokenizer.kind:
        return {}
    nats = val_loss * (len(run.val_tokens) - 1)
    return {
        "val_nats_per_character": nats / len(run.corpus.val),
        "val_bits_per_byte": nats / math.log(2) / run.val_bytes,
    }


def log_metrics(run: Run, val_loss: float) -> dict[str, float]:
    """What `NAME.metrics.jsonl` says about the step; rank 0 appends it, on the disk before it is printed."""
    settings, state = run.settings, run.state
    tokens = settings.batch_size * settings.max_seq
    line = {
        "step": state.step,
        "tokens": state.step * tokens,
        "train_seconds": round(state.train_seconds, 3),
        "train_loss": state.loss_sum / state.loss_steps,
        "val_loss": val_loss,
        "lr": settings.lr * lr_factor(state.step - 1, settings),
        "tokens_per_second": round(state.loss_steps * tokens / state.seconds_sum, 1),
        **comparable_losses(run, val_loss),
    }
    if run.dist.first:
        with open(run.paths.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return line


def print_step(run: Run, line: dict[str, float], better: bool, sample: str) -> None:
    """The step's figures and sample, and a note when the validation loss begins to rise."""
    state, floor = run.state, f" (floor {run.corpus.floor:.4f})" if run.corpus.floor else ""
    units = "".join(
        f", {value:.4f} {name.removeprefix('val_').replace('_', ' ')}"
        for name, value in line.items()
        if name in ("val_nats_per_character", "val_bits_per_byte")
    )
    tqdm.write(
        f"step {state.step:5d} | train {line['train_loss']:.4f} | val {line['val_loss']:.4f}{units}{floor}"
        f"{' *' if better else ''} | {line['tokens_per_second']:,.0f} tokens/s | {state.train_seconds:.0f} s"
    )
    tqdm.write("    " + sample.strip().replace("\n", "\n    "))
    rise = line["val_loss"] - state.best_loss
    if rise > OVERFITTING and not state.overfitting_noted:
        state.overfitting_noted = True
        tqdm.write(
            f"NOTE: validation is {rise:.3f} above its best, at step {state.best_step}, whose weights are kept. If it "
            "keeps rising, the model overfits: try more text, more --dropout or fewer --steps"
        )


def interruption(run: Run, told: bool, signum: int) -> Exception:
    """What ends a run that a signal has stopped; `told` is whether this rank got it."""
    number = int(run.dist.sum(float(told)))
    if 0 < number < run.dist.size:  # not by way of torchrun, which tells all
        return ChildProcessError(
            f"{number} of {run.dist.size} processes got {signal.Signals(signum).name}; {where_kept(run)}"
        )
    return Interrupted(signum, where_kept(run))
