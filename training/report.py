"""What a training run tells its user, and its metrics file."""

import json
import math
import os
import shlex
from dataclasses import dataclass

from tqdm import tqdm

from recipe import lr_factor
from support.command import Interrupted, visible
from support.device import describe_device, wants_compile
from tokenizer import CharTokenizer
from training.run import Run
from training.save import next_command, where_kept

# How far above its best the validation loss may rise, in nats per token, before a note says so.
OVERFITTING = 0.02


def counted(number: int, thing: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def announce(run: Run) -> None:
    """Say what was chosen."""
    settings, corpus = run.settings, run.corpus
    batch = counted(settings.batch_size, "window")
    length = f"{counted(settings.steps, 'step')} of {batch}"
    if settings.minutes and not run.state.planned:
        length = f"steps of {batch}, as many as fit into {settings.minutes:g} minutes"
    compiled = ", compiled" if wants_compile(settings.compile, run.device) else ""
    print(
        f"corpus   {corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.val):,} to validate\n"
        f"model    {run.model.num_parameters():,} parameters: {counted(settings.num_layers, 'layer')} x "
        f"{settings.embed_dim}, {counted(settings.num_heads, 'head')}, window {settings.max_seq}, "
        f"{run.tokenizer.vocab_size} tokens in the vocabulary\n"
        f"recipe   {settings.preset}: {length}\n"
        f"machine  {describe_device(run.device)}, {settings.dtype}{compiled}"
    )
    if run.dist.size > 1:
        share = settings.batch_size // run.dist.size
        print(f"ranks    {run.dist.size} processes like this one, {counted(share, 'window')} of each step for each")
    if settings.lora_rank:
        trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
        print(f"adapter  rank {settings.lora_rank} on {settings.lora_targets}: {trained:,} parameters are trained")
    if corpus.floor:
        print(f"floor    {corpus.floor:.4f} nats per character: no model goes below it unless it has seen the answers")
    if run.state.step:
        print(f"resuming at step {run.state.step}")


@dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    line: dict[str, float]  # of NAME.metrics.jsonl
    better: bool  # whether the validation loss is the lowest so far
    note: str  # about overfitting, mostly empty


def log_evaluation(run: Run, val_loss: float) -> Report:
    """Compare the loss with the best so far and append a line to `NAME.metrics.jsonl`; the mean of the training losses
    begins anew."""
    state = run.state
    better = state.note_best(val_loss)
    line = metrics_line(run, val_loss)
    if run.dist.first:
        with open(run.files.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())  # on the disk before it is printed
        if run.settings.tensorboard:
            log_tensorboard(run, line)
    state.loss_sum, state.loss_steps, state.seconds_sum = 0.0, 0, 0.0
    return Report(line, better, overfitting_note(run, val_loss))


def metrics_line(run: Run, val_loss: float) -> dict[str, float]:
    """What `NAME.metrics.jsonl` says about the step. Where tokens are not characters, it has the loss in units that do
    not depend on the tokenizer too."""
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
    }
    if run.tokenizer.kind != CharTokenizer.kind:
        nats = val_loss * (len(run.val_tokens) - 1)
        line["val_nats_per_character"] = nats / len(run.corpus.val)
        line["val_bits_per_byte"] = nats / math.log(2) / run.val_bytes
    return line


def log_tensorboard(run: Run, line: dict[str, float]) -> None:
    """Add a line of the metrics to the event files in NAME.tensorboard/."""
    from torch.utils.tensorboard import SummaryWriter  # only here: it needs an optional package

    with SummaryWriter(str(run.files.tensorboard)) as writer:
        for name, value in line.items():
            if name != "step":
                writer.add_scalar(name, value, line["step"])


def overfitting_note(run: Run, val_loss: float) -> str:
    """What to say when the validation loss has begun to rise, once after each new best; else nothing."""
    state, rise = run.state, val_loss - run.state.best_loss
    if rise <= OVERFITTING or state.overfitting_noted:
        return ""
    state.overfitting_noted = True
    return (
        f"NOTE: validation is {rise:.3f} above its best, at step {state.best_step}, whose weights are kept. If it "
        "keeps rising, the model overfits: try more text, more --dropout or fewer --steps"
    )


def print_step(run: Run, report: Report, sample: str) -> None:
    """The step's figures and sample, and the note if there is one."""
    state, floor = run.state, f" (floor {run.corpus.floor:.4f})" if run.corpus.floor else ""
    line = report.line
    others = {name: loss for name, loss in line.items() if name.startswith("val_") and name != "val_loss"}
    units = "".join(f", {loss:.4f} {name.removeprefix('val_').replace('_', ' ')}" for name, loss in others.items())
    tqdm.write(
        f"step {state.step:5d} | train {line['train_loss']:.4f} | val {line['val_loss']:.4f}{units}{floor}"
        f"{' *' if report.better else ''} | {line['tokens_per_second']:,.0f} tokens/s | {state.train_seconds:.0f} s"
    )
    tqdm.write("    " + visible(sample.strip()).replace("\n", "\n    "))
    if report.note:
        tqdm.write(report.note)


def finish(run: Run, signum: int) -> None:
    """The end of a run: where it stands, its losses as a small plot, the command to sample with.

    Raises Interrupted if a signal ended it before its last step.
    """
    settings, state = run.settings, run.state
    if signum and state.step < settings.steps:
        raise Interrupted(signum, where_kept(run))
    if state.step < settings.steps and not (settings.patience and state.stale >= settings.patience):
        print(where_kept(run))
        return
    if state.step < settings.steps:
        print(f"ended at step {state.step}: {counted(state.stale, 'evaluation')} without a new best (--patience)")
    if run.dist.first:
        lines = run.files.metrics.read_text(encoding="utf-8").splitlines()
        for row in plot([json.loads(line)["val_loss"] for line in lines]):
            print(row)
    seconds = state.train_seconds
    print(f"best validation loss {state.best_loss:.4f} at step {state.best_step}, {seconds:.0f} s of training")
    prompt = ' --prompt "ROMEO:"' if run.corpus.name == "tinyshakespeare" else ""
    print(f"sample from it with: {next_command(run, 'generate.py')}{prompt}")
    if not settings.lora_rank:
        best = run.files.best
        print(f"look into it with:   {shlex.join(['python', 'convert.py', str(best), str(best.with_suffix('.html'))])}")


def plot(losses: list[float], width: int = 60, height: int = 6) -> list[str]:
    """Lines of a plot of the validation losses, evaluation by evaluation; none for fewer than three."""
    if len(losses) < 3:
        return []
    width = min(width, len(losses))
    shown = [losses[round(i * (len(losses) - 1) / (width - 1))] for i in range(width)]
    low, high = min(shown), max(shown)
    rows = [round((high - loss) / ((high - low) or 1) * (height - 1)) for loss in shown]
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    return [
        f"{labels.get(row, ''):>8} |" + "".join("*" if at == row else " " for at in rows).rstrip()
        for row in range(height)
    ]
