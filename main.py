"""Train a TinyGPT.

examples:
  python main.py                                # corpus, device and preset chosen for this machine; five minutes
  python main.py --data my.txt --steps 500
  python main.py --resume                       # continue where the last run stopped
  torchrun --standalone --nproc-per-node 2 main.py
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported
from support.start import STARTED

import contextlib
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from corpora.texts import Corpus, encode_split
from corpora.tokenizer_files import load_bpe
from data_setup import ShiftedWindowDataset, batch_starts, consecutive_windows, load_corpus, token_folder
from optimizers import averaged_model, distillation_loss, make_optimizers, set_learning_rates
from recipe import distill_share, lr_factor, parse_flags
from sampler import sample_text
from support.command import StopSignal, user_errors
from support.command import run as run_command
from support.device import check_memory, keep_freed_memory, pick_device, pick_dtype, to_device
from tiny_decoder import TinyGPT, TinyGPTConfig, next_token_loss
from tokenizer import BOS, CharTokenizer, Tokenizer
from training.checks import training_memory
from training.distributed import DistContext, joined
from training.meter import Meter
from training.plan import plan_steps
from training.report import announce, finish, log_metrics, log_story, print_base, print_step
from training.run import Run
from training.save import names_what_is_kept, save_best, save_state, saved_if_it_fails
from training.start import Start, begin, find_start
from training.state import RunPaths, open_files

MAX_EVAL_LOGITS = 2**26  # in one batch of an evaluation: 256 MiB in float32; a batch has at least one window


def main() -> None:
    """The command: build all that a run needs, then train."""
    settings, given = parse_flags(description=__doc__)
    # dist: the processes of torchrun, or this one alone. files: what the run writes, locked against other runs.
    with joined() as dist, open_files(settings.out, dist) as files:
        start = find_start(settings, given, files, dist)  # nothing, a model to fine-tune, or a saved run to resume
        run = build_run(start, files, dist)
        begin(run, start, given)  # restores what was saved, or keeps the files of an earlier run under another name
        announce(run, given)  # prints what was chosen
        keep_freed_memory()  # from now on, which is faster: no page faults at every step
        network = dist.wrap(run.compiled(run.model))  # with several processes, their gradients are averaged
        # A signal is noted, so that the step can end; an error says what was saved, and in which process it was.
        with StopSignal(shielded=dist.size > 1) as stop, names_what_is_kept(run), dist.faults_named():
            train(run, network, stop)
        finish(run, dist.stop_signal(stop))  # prints the best loss, and what to type next


def build_run(start: Start, files: RunPaths, dist: DistContext) -> Run:
    """Corpus, tokenizer, dataset, model and optimizers of a run. If `start` has a model and tokenizer, these are used.

    Raises UserError if the settings ask for what the text or the machine does not have.
    """
    settings = start.settings
    device = dist.pick_device(pick_device(settings.device))
    dtype = dist.from_first(pick_dtype(settings.dtype, device))  # the same in all processes

    # The text, as tokens. Among several processes, the first of each machine downloads and encodes it.
    with dist.one_per_machine_first("corpus"):
        corpus = load_corpus(settings.data, documents=settings.documents, glob=settings.glob)
        # a model to fine-tune gets the characters that it lacks: its vocabulary and its tables grow
        tokenizer = start.tokenizer_for(corpus) or make_tokenizer(settings.tokenizer, corpus)
        train_tokens = encode_split(tokenizer, corpus.train, token_folder())
        with user_errors():  # a text too short is the user's mistake, not a bug
            train_set = ShiftedWindowDataset(train_tokens, settings.max_seq)
        val_tokens = encode_split(tokenizer, corpus.val, token_folder())

    # The network, and what updates it.
    check_memory(training_memory(settings, tokenizer.vocab_size, dtype, dist.size), device)
    torch.manual_seed(settings.seed)
    model = start.model
    if model is None:
        config = TinyGPTConfig(
            vocab_size=tokenizer.vocab_size,
            max_seq=settings.max_seq,
            embed_dim=settings.embed_dim,
            num_heads=settings.num_heads,
            num_layers=settings.num_layers,
            dropout=settings.dropout,
            attention_dropout=settings.attention_dropout,
            bias=settings.bias,
            gelu=settings.gelu,
            tie_embeddings=settings.tie_embeddings,
        )
        model = TinyGPT(config, settings.init)
    model.to(device)
    optimizers = make_optimizers(model, settings)
    average = averaged_model(model, settings.ema_decay) if settings.ema_decay else None
    return Run(
        settings=settings,
        corpus=corpus,
        tokenizer=tokenizer,
        train_set=train_set,
        val_tokens=val_tokens,
        model=model,
        optimizers=optimizers,
        average=average,
        # float16 has no numbers below 6e-8, where many gradients are: so the loss is multiplied, and they with it
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        device=device,
        dtype=dtype,
        state=start.state,
        files=files,
        dist=dist,
    )


def make_tokenizer(name: str, corpus: Corpus) -> Tokenizer:
    """The characters of the corpus's training part ("char"), or the BPE vocabulary in a file.

    A text without a prompt begins after `<bos>` if the corpus is of several documents, else after a newline.
    """
    start = BOS if corpus.train.separated else None
    if name == CharTokenizer.kind:
        return CharTokenizer.from_blocks(corpus.train.blocks(), start)
    return load_bpe(Path(name), start or "\n")


# --- Training --------------------------------------------------------------------------------------------------------


def train(run: Run, network: nn.Module, stop: StopSignal) -> None:
    """Train until the last step, a stop signal or the end of --patience; evaluate and save every eval_every steps.

    run.model holds the weights; network is the same model, compiled if that was asked for. Each of several processes
    has a copy of it, and `backward` averages their gradients.
    """
    settings, state, dist = run.settings, run.state, run.dist
    if dist.size > 1:  # DistributedDataParallel regroups the gradients after its first backward pass: drop that one
        compute_gradients(run, network)
    if state.step == 0:  # what the initial weights do
        log_story(run, sample_text(run.model_to_keep, run.tokenizer))
    stopped = dist.stop_signal(stop)  # a signal that came to any of the processes, or 0
    with Meter(run) as meter:  # adds up losses and times, but for what is `paused`
        if settings.init_from and state.best_loss is None:  # the base counts: a worse model must not become the best
            with meter.paused():
                state.note_evaluation(evaluate(run))
                save_best(run)
                print_base(run)
        if state.evaluation_due(settings):  # it failed, and so ended the run that is resumed here
            evaluate_and_save(run, meter)
        while state.step < run.last_step and not stopped:  # the last of all, --stop-at, or --patience is over
            if not state.planned and state.step >= max(1, settings.warmup):  # now the length of a step is known
                with meter.paused():
                    began = time.perf_counter()
                    if settings.minutes:  # an evaluation, only to time it
                        evaluate(run)
                        sample_text(run.model_to_keep, run.tokenizer)
                    now = time.perf_counter()
                    # Sets settings.steps and settings.eval_every, so that all fits into the minutes.
                    plan_steps(run, meter.step_seconds, evaluation_seconds=now - began, elapsed=now - STARTED)
            loss = train_step(run, network)
            meter.count(loss)
            if state.evaluation_due(settings):
                evaluate_and_save(run, meter)
            stopped = dist.stop_signal(stop)
    if run.saved_step < state.step or not run.saved_in:  # it ended between two evaluations
        save_state(run)


def train_step(run: Run, network: nn.Module) -> float:
    """One update of the weights; returns the mean loss of the whole batch in nats per token.

    In float16 a gradient may overflow: then nothing is updated, the scaler takes half of its factor, and training goes
    on. Otherwise raises FloatingPointError, before any weight is changed, if the loss or the gradient is not finite.
    """
    settings, state, scaler = run.settings, run.state, run.scaler
    with saved_if_it_fails(run):
        loss = compute_gradients(run, network)
    for optimizer in run.optimizers:
        scaler.unscale_(optimizer)  # divides the gradients by what the loss was multiplied by
    # A rare batch has a gradient many times the usual. It is scaled down, or this step could undo many others
    # (Pascanu et al. 2013, https://arxiv.org/abs/1211.5063).
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), settings.grad_clip).item()
    factor = lr_factor(state.step, settings)
    overflow = not math.isfinite(norm) and scaler.is_enabled() and scaler.get_scale() > 1
    if not math.isfinite(loss) or not (math.isfinite(norm) or overflow):
        numbers = f"step {state.step}: the loss is {loss}, the gradient's norm {norm}; nothing was updated"
        lr = f"a smaller --lr (now {settings.lr * factor:g}, at its peak {settings.lr:g})"
        advice = lr if run.dtype == torch.float32 else f"{lr} or --dtype float32"
        raise FloatingPointError(f"{numbers}. Try {advice}")
    set_learning_rates(run.optimizers, factor)
    for optimizer in run.optimizers if not overflow else []:
        optimizer.step()
    scaler.update()
    state.skipped += overflow
    if run.average and not overflow:
        run.average.update_parameters(run.model)
    state.step += 1
    return loss


def compute_gradients(run: Run, network: nn.Module) -> float:
    """Leave the mean gradient of the whole batch in the weights' `.grad`; returns its mean loss in nats per token.

    All that is random depends only on seed, step, process and their number: a resumed run draws the same windows.
    """
    settings, dist, step, dataset = run.settings, run.dist, run.state.step, run.train_set
    network.zero_grad()  # the last step's are of no use any more
    # batch: each process has its own windows
    starts = batch_starts(dataset, settings.batch_size, settings.seed, step, dist.rank, dist.size, settings.windows)
    inputs, targets = dataset.batch(starts)  # (B, T) both
    # for dropout: every step of every process has its own seed, and that of another --seed is a million steps away
    torch.manual_seed((settings.seed * 1_000_003 + step) * dist.size + dist.rank)
    network.train()
    total, parts, share = 0.0, settings.grad_accum, distill_share(step, settings)
    for part, (x, y) in enumerate(zip(inputs.chunk(parts), targets.chunk(parts), strict=True), start=1):
        x, y = to_device(x, run.device), to_device(y, run.device)
        # with several processes, the last part's backward averages their gradients
        with network.no_sync() if dist.size > 1 and part < parts else contextlib.nullcontext():
            # forward
            with autocast(run):
                logits = network(x)
            loss = next_token_loss(logits, y) / parts
            total += loss.detach()
            if settings.distill:  # a share of the loss is to predict what the average of the weights predicts
                with torch.no_grad(), autocast(run):
                    teacher = run.compiled(run.average.module).eval()(x)
                loss = (1 - share) * loss + share * distillation_loss(logits, teacher) / parts
            # backward: adds to .grad, so the parts sum to the mean gradient of the batch
            run.scaler.scale(loss).backward()
    return float(dist.sum(total.item())) / dist.size  # the mean of the processes: all see it if one is not finite


def autocast(run: Run) -> torch.autocast:
    """Within it, matrix products compute in the run's precision, and what needs more in float32."""
    return torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32)


# --- At an evaluation ------------------------------------------------------------------------------------------------


def evaluate_and_save(run: Run, meter: Meter) -> None:
    """Evaluate, keep the model if it is the best so far, save the training state, and report."""
    with meter.paused(), saved_if_it_fails(run):  # whatever fails here, no step is lost
        val_loss, sample = evaluate(run), sample_text(run.model_to_keep, run.tokenizer)
        log_story(run, sample, val_loss)  # for the page that tells how the model learned
        if run.state.note_evaluation(val_loss):  # the lowest so far
            save_best(run)  # the model, to NAME.pth
        line = log_metrics(run, val_loss)
        save_state(run)  # what --resume needs, to NAME.last.pth
        print_step(run, line, sample)


@torch.inference_mode()
def evaluate(run: Run) -> float:
    """Mean loss in nats per token over the validation split, or --eval-tokens of it, in windows side by side.

    Raises FloatingPointError if it is not finite.
    """
    settings, dist = run.settings, run.dist
    network = run.compiled(run.model_to_keep).eval()  # the average of the weights, if there is one
    batch_tokens = min(2**14, MAX_EVAL_LOGITS // run.tokenizer.vocab_size)
    losses, count = [], 0
    batches = consecutive_windows(run.val_tokens, settings.max_seq, batch_tokens, settings.eval_tokens)
    for number, (inputs, targets) in enumerate(batches):
        losses.append(0.0)
        count += targets.numel()
        if number % dist.size == dist.rank:  # with several processes, each takes every size-th batch
            with autocast(run):
                logits = network(to_device(inputs, run.device))
            losses[-1] = next_token_loss(logits, to_device(targets, run.device)).item() * targets.numel()
    val_loss = sum(dist.sum(np.array(losses)).tolist()) / count  # in the same order, however many processes there are
    if not math.isfinite(val_loss):
        raise FloatingPointError(f"step {run.state.step}: the validation loss is {val_loss}. Try a smaller --lr")
    return val_loss


if __name__ == "__main__":
    run_command(main)
