"""What a training run tells its user, and its metrics file."""

import json
import math
import sys
from argparse import Namespace

from tqdm import tqdm

from corpora.documents import NAMES
from corpora.texts import TENTH_PIECE, odd_tenth
from formats.adapter import adapter_weights
from formats.growth import get_rows, own_rows
from recipe import SOFT, lr_factor, preset_settings
from support.command import Interrupted, flag_of, one_line, visible
from support.device import describe_device, wants_compile
from support.durable import append_line
from tokenizer import CharTokenizer
from training.run import Run
from training.save import sample_command, typed_command, where_kept
from training.story import append_frame, story_frame

# So many evaluations without a new best at the end of a run are a sign of overfitting.
MIN_STALE = 3
MAX_DIFFERENCE = 0.4  # nats per token, of the last tenth of a text from another
LENGTH = {"preset", "steps", "minutes", "epochs", "stop_at", "resume"}  # of a run, which an advice decides
# Why a preset was chosen.
REASONS = {"tiny": "so little time", "brief": "a short text in little time", "short": "a short text"}
REASONS |= {"plain": "a network of your own", "tune": "fine-tuning", "lora": "adapters"}


def counted(number: int, thing: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def announce(run: Run, given: set[str]) -> None:
    """Say what was chosen, and why if the user did not; given: the names of the flags."""
    settings, corpus = run.settings, run.corpus
    usual = "this time, on this machine" if settings.minutes else "this machine"
    why = "" if given & {"preset", "resume"} else f", for {REASONS.get(settings.preset, usual)}"
    batch = counted(settings.batch_size, "window")
    length = f"{counted(settings.steps, 'step')} of {batch}"
    if settings.minutes and not run.state.planned:
        length = f"steps of {batch}, as many as fit into {settings.minutes:g} min"
    if settings.epochs:
        length += f", at most {settings.epochs:g} times through the text"
    compiled = ", compiled" if wants_compile(settings.compile, run.device) else ""
    print(
        f"corpus   {corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.val):,} to validate\n"
        f"model    {run.model.num_parameters():,} parameters: {counted(settings.num_layers, 'layer')} x "
        f"{settings.embed_dim}, {counted(settings.num_heads, 'head')}, window {settings.max_seq}, "
        f"{run.tokenizer.vocab_size} tokens in the vocabulary\n"
        f"recipe   {settings.preset}{why}: {length}\n"
        f"machine  {describe_device(run.device)}, {settings.dtype}{compiled}"
    )
    if run.dist.size > 1:
        print(f"ranks    {run.dist.size} processes like this one, which share the windows of each step")
    if settings.lora_rank:
        rows = get_rows(run.model, own_rows(run.tokenizer, run.state.new_characters))
        trained = sum(tensor.numel() for tensor in (adapter_weights(run.model) | rows).values())
        print(f"adapter  rank {settings.lora_rank} on {settings.lora_targets}: {trained:,} parameters are trained")
    as_it_is = not (settings.documents or run.corpus.name in NAMES) and run.dist.first and not run.state.step
    if as_it_is and len(run.train_set.tokens) > max(10 * TENTH_PIECE, 100 * run.tokenizer.vocab_size):
        warn_of_odd_tenth(run)
    if run.saved_in:
        print(f"resuming at step {run.state.step}")


def warn_of_odd_tenth(run: Run) -> None:
    """A note on stderr if the end of the text, on which the model is validated, is unlike the rest."""
    last, other = odd_tenth(run.train_set.tokens[: 2**22], run.val_tokens[: 2**19])
    if abs(last - other) > MAX_DIFFERENCE:
        what = "NOTE: the last tenth of the text, which validates, is unlike the rest (pairs of tokens predict it with"
        advice = 'if the text is a list, --documents lines, blank or "=STRING" shuffles it'
        print(f"{what} {last:.2f} nats a token, another tenth with {other:.2f}); {advice}", file=sys.stderr)


def log_metrics(run: Run, val_loss: float) -> dict[str, float]:
    """Append a line to `NAME.metrics.jsonl`, and return it; the mean of the training losses begins anew.

    Where tokens are not characters, the line has the loss in units that do not depend on the tokenizer too.
    """
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
        nats = val_loss * (len(run.val_tokens) - 1)  # the first token is only ever an input
        first = run.tokenizer.decode_bytes(run.val_tokens[:1])
        line["val_nats_per_character"] = nats / (len(run.corpus.val) - len(first.decode("utf-8", "ignore")))
        line["val_bits_per_byte"] = nats / math.log(2) / (run.val_bytes - len(first))
    if run.dist.first:
        append_line(run.files.metrics, json.dumps(line))
    state.loss_sum, state.loss_steps, state.seconds_sum = 0.0, 0, 0.0
    return line


def log_story(run: Run, sample: str, val_loss: float | None = None) -> None:
    """Append a frame to `NAME.story.jsonl`, from which the page tells how the model learned.

    sample: what the model writes now. val_loss: None before the first step. A network that was changed so far that
    nothing can look into it trains all the same, without a story.
    """
    if not run.dist.first:
        return
    try:
        frame = story_frame(run, sample, val_loss)
    except (AttributeError, TypeError, RuntimeError, LookupError, ValueError) as error:
        tqdm.write(f"NOTE: sampling/inspect.py does not fit the network, so the page has no story: {one_line(error)}")
    else:
        append_frame(run.files.story, frame)


def print_base(run: Run) -> None:
    """What the base of a fine-tuning reaches on the new text, which is the loss to beat."""
    tqdm.write(f"step     0 | val {run.state.best_loss:.4f} * | the base itself")


def print_step(run: Run, line: dict[str, float], sample: str) -> None:
    """A line of the metrics and a sample; `*` marks a new best."""
    state = run.state
    names = [name for name in ("val_nats_per_character", "val_bits_per_byte") if name in line]
    units = "".join(f", {line[name]:.4f} {name.removeprefix('val_').replace('_', ' ')}" for name in names)
    floor = run.corpus.floor and f" (floor {run.corpus.floor:.4f}{' nats per character' if units else ''})"
    tqdm.write(
        f"step {state.step:5d} | train {line['train_loss']:.4f} | val {line['val_loss']:.4f}{units}{floor or ''}"
        f"{'' if state.stale else ' *'} | {line['tokens_per_second']:,.0f} tokens/s | {state.train_seconds:.0f} s"
    )
    tqdm.write("    " + visible(sample.strip()).replace("\n", "\n    "))


def finish(run: Run, signum: int) -> None:
    """The end of a run: where it stands, its best loss, the command to sample with.

    Raises Interrupted if a signal ended it before its last step.
    """
    settings, state = run.settings, run.state
    patience_is_over = settings.patience and state.stale >= settings.patience
    if state.step < settings.steps and signum:
        raise Interrupted(signum, where_kept(run))
    if state.step < settings.steps and not patience_is_over:
        print(where_kept(run))
        return
    guessing = math.log(run.tokenizer.vocab_size)
    muon = "" if settings.lora_rank or settings.optimizer == "adamw" else " and --muon-lr"
    if settings.init_from and state.best_step == 0:
        print(f"no gain over the base, whose validation loss is {state.best_loss:.4f}: try a smaller --lr{muon}")
    elif state.best_loss > guessing and not settings.init_from:
        print(f"NOTE: guessing has a lower loss, {guessing:.4f}: try more text, more --steps or a smaller --lr{muon}")
    seconds = f"{state.train_seconds:.0f} s of training"
    skipped = f", {counted(state.skipped, 'step')} skipped: gradient too large" if state.skipped else ""
    print(f"best validation loss {state.best_loss:.4f} at step {state.best_step}, {seconds}{skipped}")
    if state.best_step and (state.stale >= MIN_STALE or patience_is_over):
        print(f"{counted(state.stale, 'evaluation')} without a new best: the model may overfit{advice_against(run)}")
    prompt = ' --prompt "ROMEO:"' if run.corpus.name == "tinyshakespeare" else ""
    print(f"sample from it with: {sample_command(run)}{prompt}")
    if not settings.lora_rank:
        page = settings.out.removesuffix(".pth") + ".html"
        print(f"look into it with:   {typed_command('convert.py', settings.out, page)}")


def advice_against(run: Run) -> str:
    """What to do about overfitting: a command for this run once more, with the steps of the best model; without soft
    targets so far, with them and twice the steps, because they delay overfitting."""
    settings, state = run.settings, run.state
    soft = [] if settings.distill else ["--ema-decay", str(SOFT["ema_decay"]), "--distill", str(SOFT["distill"])]
    steps = str(min(state.best_step * (2 if soft else 1), state.step))
    command = typed_command("main.py", "--preset", settings.preset, "--steps", steps, *flags_of(settings), *soft)
    return f"; more text is the best remedy, or {'soft targets' if soft else 'fewer steps'}: {command}"


def flags_of(settings: Namespace) -> list[str]:
    """The flags that change a preset into these settings, without those of its length."""
    usual, words = vars(preset_settings(settings.preset)), []
    for name, value in vars(settings).items():
        if name not in LENGTH and value not in (None, usual[name]):
            words.append(flag_of(name if value is not False else f"no_{name}"))
            words += [] if isinstance(value, bool) else value if isinstance(value, list) else [str(value)]
    return words
