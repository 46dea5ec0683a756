"""Where a run begins: with nothing, with a model to fine-tune, or with its own saved state."""

import os
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from corpora.texts import Corpus
from formats.adapter import adapt, base_weights
from formats.checkpoint import check_tensors, checked_model, load_model, model_digest, model_from_weights, model_weights
from formats.growth import grow_model, grown_tokenizer, own_rows, train_rows
from lora import add_adapters, lora_config
from recipe import AUTO
from support.command import UserError, user_errors, visible
from tiny_decoder import TinyGPT
from tokenizer import BOS, CharTokenizer, Tokenizer
from training import checks
from training.distributed import DistContext
from training.optimizer_state import restore_optimizers, trained_parameters
from training.plan import limit_epochs
from training.run import Run
from training.state import RunPaths, TrainState


@dataclass
class Start:
    """What a run begins with. A new run has neither model nor tokenizer: main.py makes them."""

    settings: Namespace
    state: TrainState
    model: TinyGPT | None = None
    tokenizer: Tokenizer | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)  # of optimizers and average, by the names of save.py
    saved_in: Path | None = None  # the training state that is resumed

    def tokenizer_for(self, corpus: Corpus) -> Tokenizer | None:
        """The tokenizer of the base or of the saved run; None for a new run. A base gets the characters of the corpus
        that it lacks, and learns where documents begin: this changes `model` and `state` too."""
        base = self.tokenizer
        if base is None or self.saved_in:
            return base
        known = getattr(base, "characters", None)
        new = ""
        if known is not None:
            new = "".join(sorted(set(CharTokenizer.from_blocks(corpus.train.blocks()).characters) - set(known)))
            print(f"base     {len(new)} new characters{': ' + visible(new[:40]) if new else ''}")
        self.tokenizer = grown_tokenizer(base, new, BOS if corpus.train.separated else base.start)
        if self.settings.lora_rank:
            self.state.base = model_digest(self.model.config, base, base_weights(self.model))
        grow_model(self.model, len(new), len(base.special_ids))
        self.state.new_characters = len(new)
        if self.settings.lora_rank:
            train_rows(self.model, own_rows(self.tokenizer, len(new)))
        return self.tokenizer


def find_start(settings: Namespace, given: set[str], files: RunPaths, dist: DistContext) -> Start:
    """The start that the flags ask for. Raises UserError that names a flag that contradicts what is there."""
    dist.require_same("command line", repr((settings, sorted(given))))
    if settings.resume:
        start = resume(settings, given, files, dist)
    else:
        checks.refuse_unused(settings, given)
        start = fine_tune(settings, given) if settings.init_from else Start(settings, TrainState())
    checks.check_split(start.settings, dist)
    return start


def fine_tune(settings: Namespace, given: set[str]) -> Start:
    """The model of --init-from, with fresh adapters if --lora-rank says so."""
    adapters = lora_config(settings)
    if os.path.realpath(settings.init_from) == os.path.realpath(settings.out):
        raise UserError(f"--out {settings.out} is the base, which is worth keeping: choose another --out")
    base = load_model(Path(settings.init_from))
    settings = checks.settings_for_base(settings, given, base.model.config)
    config = replace(base.model.config, dropout=settings.dropout, attention_dropout=settings.attention_dropout)
    model = model_from_weights(config, model_weights(base.model))
    if adapters:
        torch.manual_seed(settings.seed)
        with user_errors():
            add_adapters(model, adapters)
    return Start(settings, TrainState(), model, base.tokenizer)


def resume(settings: Namespace, given: set[str], files: RunPaths, dist: DistContext) -> Start:
    """The run whose training state lies beside --out, as it was after its last saved step."""
    header, tensors, path = dist.from_first(files.read_newest() if dist.first else None)
    state = TrainState.from_plain(header["training"])
    try:
        saved = checks.saved_settings(header["settings"])
        loaded = checked_model(header, {name: tensor for name, tensor in tensors.items() if "/" not in name})
        if saved.max_seq > loaded.model.config.max_seq:
            raise ValueError(f"max_seq {saved.max_seq} is more than the model's {loaded.model.config.max_seq}")
        if adapters := lora_config(saved):
            adapt(loaded.model, adapters, with_prefix(tensors, "adapter/"))
            new = min(state.new_characters, loaded.tokenizer.vocab_size)
            train_rows(loaded.model, own_rows(loaded.tokenizer, new))
    except (ValueError, UserError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    settings = checks.settings_to_resume(saved, settings, given, path, due=state.step * state.evaluation_due(saved))
    checks.refuse_unused(settings, given)
    state.planned = state.planned and "minutes" not in given
    if given & {"minutes", "steps"} and 0 < (settings.patience or 0) <= state.stale:  # it was over, but more is wanted
        state.stale = 0
    last = min(settings.steps, settings.stop_at or settings.steps)
    if state.step >= last and not state.evaluation_due(settings):
        advice = "give --minutes, or a larger --steps or --stop-at"
        raise UserError(f"the run in {path} has made {state.step} steps already: {advice}")
    return Start(settings, state, loaded.model, loaded.tokenizer, tensors, path)


def begin(run: Run, start: Start, given: set[str]) -> None:
    """Bring a run that main.py has built to where it starts: restore what was saved, or keep an earlier run's files,
    and fit the steps to the text as far as their flags are not given.

    Raises UserError if the text is not the saved run's.
    """
    settings, dist, state = run.settings, run.dist, run.state
    dist.require_same("corpus or tokenizer", f"{run.corpus.sha256} {run.tokenizer.to_plain()}")
    if settings.data == [AUTO]:  # what it stood for is not chosen anew
        settings.data = [run.corpus.name]
    settings.dtype = str(run.dtype).removeprefix("torch.")
    if start.saved_in:
        restore(run, start)
    elif settings.epochs:
        limit_epochs(settings, given, len(run.train_set.tokens))
    if dist.first and not start.saved_in:
        run.files.keep_earlier_run()
    state.threads, state.processes = torch.get_num_threads(), dist.size
    state.corpus_sha256 = run.corpus.sha256


def restore(run: Run, start: Start) -> None:
    """Give the optimizers and the average what the saved ones held."""
    path, tensors, step = start.saved_in, start.tensors, start.state.step
    updates = step - start.state.skipped
    if run.corpus.sha256 != start.state.corpus_sha256:
        problem = f"is not the text that the run in {path} was trained on, or has changed"
        raise UserError(f"--data {run.corpus.name} {problem}")
    with user_errors(f"{path} cannot be used: its optimizers or average: "):
        restore_optimizers(run.optimizers, with_prefix(tensors, "optimizer/"), updates)
        averages = with_prefix(tensors, "average/")
        trained = trained_parameters(run.average.module) if run.average else {}
        check_tensors(averages, {name: p.shape for name, p in trained.items()})
    if run.average:
        run.average.n_averaged.fill_(updates)
        run.average.module.load_state_dict(averages, strict=False)  # what is frozen is not saved again
    if run.scaler.is_enabled() and start.state.loss_scale:
        scale = {"scale": start.state.loss_scale, "_growth_tracker": start.state.scale_steps}
        run.scaler.load_state_dict(run.scaler.state_dict() | scale)
    run.saved_in, run.saved_step = path, step
    before, now = f"{start.state.processes} x {start.state.threads}", f"{run.dist.size} x {torch.get_num_threads()}"
    if before != now:
        print(f"NOTE: the run used {before} (processes x threads), now {now}: close, but not bit-exact")
    if run.dist.first:
        run.files.trim_metrics(step - 1 if run.state.evaluation_due(run.settings) else step)


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
