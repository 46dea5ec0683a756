"""A training run: what it carries, how it begins or goes on, and how it is saved."""

import contextlib
import dataclasses
import importlib.util
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from corpora.texts import count_unknown, encode_split
from data_setup import DATA_FOLDER, Corpus, ShiftedWindowDataset, load_corpus
from formats.checkpoint import adapt, load_checkpoint, model_from_weights, save_adapter, save_checkpoint
from recipe import (
    AUTO,
    PRESETS,
    TrainSettings,
    WeightAverage,
    least_memory,
    make_optimizers,
    restore_optimizer,
)
from support import command as cli
from support.device import check_memory, keep_freed_memory, pick_device, pick_dtype
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import BOS, CharTokenizer, Tokenizer
from training.distributed import ALONE, Ranks
from training.lora import adapter_optimizer, adapter_weights, add_adapters
from training.state import (
    RunPaths,
    check_output,
    keep_earlier_run,
    load_newest,
    load_training,
    lock_output,
    trim_metrics,
)

TOKEN_FOLDER = DATA_FOLDER / "tokens"  # where the ids of large texts are kept

MOST_UNKNOWN = 0.01  # share of characters that the base of a fine-tuning may not know

# What may change when a run is resumed; everything else would make it another run.
ADJUSTABLE = frozenset((
    "steps", "stop_at", "eval_every", "lr", "muon_lr", "warmup", "decay", "resume", "out", "device", "dtype", "compile",
))  # fmt: skip


@dataclass
class Run:
    """Everything that a training run carries from step to step."""

    settings: TrainSettings
    device: torch.device
    dtype: torch.dtype
    corpus: Corpus
    tokenizer: Tokenizer
    model: TinyGPT
    train_set: ShiftedWindowDataset
    val_tokens: np.ndarray
    val_bytes: int  # of the validation text in UTF-8
    optimizers: list[torch.optim.Optimizer]
    ranks: Ranks = ALONE
    step: int = 0
    train_seconds: float = 0.0  # steps only: evaluation, saving and set-up left out
    best_loss: float = math.inf
    best_step: int = 0
    overfitting_said: bool = False
    saved_in: Path | None = None  # the file that holds the newest whole training state
    saved_step: int = 0
    network: nn.Module = field(init=False)  # the model, compiled and wrapped as needed; the weights are the model's
    average: WeightAverage | None = field(init=False)

    def __post_init__(self):
        network = torch.compile(self.model) if self.compiled else self.model
        self.network = self.ranks.wrap(network, self.device)  # all ranks have rank 0's weights from here on
        self.average = WeightAverage(self.model, self.settings.average) if self.settings.average else None

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is asked for, or left to us and at hand: it needs Triton and a C compiler."""
        if self.settings.compile is not None:
            return self.settings.compile
        tools = importlib.util.find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang")))
        return self.device.type == "cuda" and bool(tools)

    def weights_to_keep(self) -> contextlib.AbstractContextManager:
        """Within it, the model's weights are those to evaluate and to save as the best: the average if there is one."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    @property
    def paths(self) -> RunPaths:
        return RunPaths(Path(self.settings.out))


# --- Beginning -------------------------------------------------------------------------------------------------------


def choose_settings(given: dict, device: torch.device) -> TrainSettings:
    """The preset that is asked for, or fits the device, changed by the flags given."""
    preset = given.get("preset", AUTO)
    if preset == AUTO:
        preset = "base" if device.type == "cuda" else "small"
    return TrainSettings(**{**PRESETS.get(preset, {}), **given, "preset": preset})


def refuse_unused(given: dict, settings: TrainSettings) -> None:
    """ValueError that names a given flag which would do nothing beside the others."""
    unused, beside = (), ""
    if settings.lora_rank:
        unused, beside = ("optimizer", "muon_lr", "muon_momentum", "weight_decay"), "--lora-rank, which takes AdamW"
    elif settings.optimizer == "adamw":
        by_preset = f" (of --preset {settings.preset})" if "optimizer" in PRESETS[settings.preset] else ""
        unused, beside = ("muon_lr", "muon_momentum"), f"--optimizer adamw{by_preset}"
    for name in unused:
        if name in given:
            raise ValueError(f"{cli.flag_of(name)} does nothing beside {beside}: leave it out")


def open_run(given: dict, held: contextlib.ExitStack, ranks: Ranks) -> Run:
    """The new or resumed run that the flags ask for; `held` keeps others from writing its files."""
    paths = RunPaths(Path(given.get("out", TrainSettings.out)))
    cli.check_given(TrainSettings, given)
    check_output(paths)
    ranks.require_same("command line", repr(given))
    if given.get("resume") or restarted(paths, ranks):
        if ranks.first and (paths.last.exists() or paths.previous.exists()):  # else resume_run says what is missing
            held.enter_context(lock_output(paths))
        run = resume_run(given, ranks)
        if ranks.first:
            trim_metrics(run.paths.metrics, run.step)
        return run
    device = ranks.pick_device(pick_device(given.get("device", AUTO)))
    settings = choose_settings(given, device)
    refuse_unused(given, settings)
    if settings.init_from:
        run = start_fine_tuning(settings, given, device, ranks)
    else:
        run = start_run(settings, device, ranks)
    if ranks.first:
        held.enter_context(lock_output(paths))
        keep_earlier_run(paths)
    return run


def restarted(paths: RunPaths, ranks: Ranks) -> bool:
    """Whether torchrun has run this command before, lost a rank, and tries again, with a state to go on from."""
    ours = False
    if ranks.launch and ranks.first:
        with contextlib.suppress(ValueError):  # there is no state, or not one of ours
            ours = load_newest(paths)[0].training["launch"] == ranks.launch
    return bool(ranks.largest(ours))


def start_run(settings: TrainSettings, device: torch.device, ranks: Ranks = ALONE) -> Run:
    """A new run at step 0."""
    corpus = shared_corpus(settings.data, ranks)
    settings = dataclasses.replace(settings, data=corpus.name)  # resuming must not choose again
    tokenizer = choose_tokenizer(settings, corpus)
    torch.manual_seed(settings.seed)
    config = TinyGPTConfig(
        vocab_size=tokenizer.vocab_size,
        max_seq=settings.max_seq,
        embed_dim=settings.embed_dim,
        num_heads=settings.num_heads,
        num_layers=settings.num_layers,
        dropout=settings.dropout,
        attention_dropout=settings.attention_dropout,
    )
    check_memory(least_memory(settings, tokenizer.vocab_size), device)
    model = TinyGPT(config)
    if settings.init == "sinusoid":
        model.init_sinusoid()
    return assemble_run(settings, device, corpus, tokenizer, model, ranks)


def shared_corpus(spec: str, ranks: Ranks) -> Corpus:
    """The corpus, fetched once per machine; ValueError if the machines came to different ones."""
    with ranks.one_per_machine_first("corpus"):
        corpus = load_corpus(spec)
    ranks.require_same("corpus", corpus.sha256)
    return corpus


def start_fine_tuning(settings: TrainSettings, given: dict, device: torch.device, ranks: Ranks = ALONE) -> Run:
    """A new run at step 0 that begins as the model of --init-from, with fresh adapters if --lora-rank says so.

    Raises ValueError if a given flag contradicts that model or its vocabulary does not know the text's characters.
    """
    base = load_checkpoint(Path(settings.init_from))
    fixed = {name: getattr(base.model.config, name) for name in ("max_seq", "embed_dim", "num_heads", "num_layers")}
    for name, value in {**fixed, "tokenizer": "its own", "init": "its own"}.items():
        if name in given and given[name] != value:
            raise ValueError(
                f"{cli.flag_of(name)} {given[name]} contradicts {settings.init_from} ({value}): leave it out"
            )
    dropouts = {name: given.get(name, getattr(base.model.config, name)) for name in ("dropout", "attention_dropout")}
    noise = given.get("token_noise", 0.0)  # the recipe's is for learning a text from nothing
    settings = dataclasses.replace(settings, **fixed, **dropouts, token_noise=noise)
    corpus = shared_corpus(settings.data, ranks)
    settings = dataclasses.replace(settings, data=corpus.name)  # resuming must not choose again
    torch.manual_seed(settings.seed)
    config = dataclasses.replace(base.model.config, **dropouts)
    check_memory(least_memory(settings, config.vocab_size), device)
    model = model_from_weights(config, base.model.state_dict())
    if settings.lora_rank:
        add_adapters(model, settings.lora_config())
    run = assemble_run(settings, device, corpus, base.tokenizer, model, ranks)
    tokens = (run.train_set.tokens, run.val_tokens)
    share = sum(count_unknown(base.tokenizer, ids) for ids in tokens) / sum(len(ids) for ids in tokens)
    print(f"base     {settings.init_from}; {share:.2%} of the characters of {corpus.name} are unknown to it")
    if share > MOST_UNKNOWN:
        raise ValueError(
            f"{share:.1%} of the characters of {corpus.name} are unknown to {settings.init_from}: fine-tune a base "
            "with byte-level BPE, which knows all of them (python tokenizer.py train, then main.py --tokenizer)"
        )
    return run


def choose_tokenizer(settings: TrainSettings, corpus: Corpus) -> Tokenizer:
    """The characters of the corpus's training part, or what --tokenizer names."""
    if settings.tokenizer == CharTokenizer.kind:
        return CharTokenizer.from_blocks(corpus.train.blocks(), BOS if corpus.train.separated else None)
    from corpora.bpe import BPETokenizer  # only here: it needs a package that characters do without

    return BPETokenizer.load(Path(settings.tokenizer), BOS if corpus.train.separated else "\n")


def assemble_run(
    settings: TrainSettings,
    device: torch.device,
    corpus: Corpus,
    tokenizer: Tokenizer,
    model: TinyGPT,
    ranks: Ranks,
) -> Run:
    """A run at step 0 around a model, on its device, with the corpus encoded and the optimizers made."""
    check_split(settings, ranks)
    dtype = pick_dtype(settings.dtype, device)
    settings = dataclasses.replace(settings, dtype=str(dtype).removeprefix("torch."))  # resuming must not choose again
    model = model.to(device)
    with ranks.one_per_machine_first("tokens"):
        train_tokens, val_tokens = (encode_split(tokenizer, part, TOKEN_FOLDER) for part in (corpus.train, corpus.val))
    ranks.require_same("number of tokens", str(len(train_tokens)))
    if device.type == "cpu":
        keep_freed_memory()
    return Run(
        settings=settings,
        device=device,
        dtype=dtype,
        corpus=corpus,
        tokenizer=tokenizer,
        model=model,
        train_set=ShiftedWindowDataset(train_tokens, settings.max_seq),
        val_tokens=val_tokens,
        val_bytes=corpus.val.count_bytes(),
        optimizers=[adapter_optimizer(model, settings.lr)] if settings.lora_rank else make_optimizers(model, settings),
        ranks=ranks,
    )


def check_split(settings: TrainSettings, ranks: Ranks) -> None:
    """Raise ValueError if the batch cannot be split over ranks and --grad-accum, or the ranks' recipes differ."""
    parts = ranks.size * settings.grad_accum
    if settings.batch_size % parts:
        fitting = max(1, round(settings.batch_size / parts)) * parts
        raise ValueError(
            f"--batch-size {settings.batch_size} cannot be split into {ranks.size} (processes) x {settings.grad_accum} "
            f"(--grad-accum) equal parts: --batch-size {fitting} can"
        )
    ranks.require_same("recipe", repr(settings))


def resume_run(given: dict, ranks: Ranks = ALONE) -> Run:
    """The run whose training state lies beside --out, as it was after its last saved step.

    Raises ValueError that names a flag that contradicts the saved run.
    """
    paths = RunPaths(Path(given.get("out", TrainSettings.out)))
    loaded, path = load_newest(paths) if ranks.first else (None, paths.last)
    with ranks.file_of_first(path) as copy:
        loaded = loaded or load_training(copy)
    state = loaded.training
    try:
        if missing := {field.name for field in dataclasses.fields(TrainSettings)} - state["settings"].keys():
            raise ValueError(
                f"{', '.join(sorted(missing))} missing: another version of TinyGPT saved it; resume with that"
            )
        saved = TrainSettings(**state["settings"])
        if saved.max_seq > loaded.model.config.max_seq:
            raise ValueError(f"max_seq {saved.max_seq} is more than the model's {loaded.model.config.max_seq}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: its settings: {error}") from None
    settings = settings_to_resume(saved, given, path, paths)
    refuse_unused(given, settings)
    corpus = shared_corpus(settings.data, ranks)
    if corpus.sha256 != state["corpus_sha256"]:
        raise ValueError(f"--data {settings.data} is no longer the text that the run in {path} was trained on")
    by_characters = settings.tokenizer == CharTokenizer.kind and not settings.init_from
    if by_characters and loaded.tokenizer.to_plain() != choose_tokenizer(settings, corpus).to_plain():
        raise ValueError(f"{path} cannot be used: its vocabulary is not that of {settings.data}")
    if state["step"] >= settings.steps:
        raise ValueError(f"the run in {path} is complete at step {state['step']}: give a larger --steps to go on")
    if settings.stop_at and state["step"] >= settings.stop_at:
        raise ValueError(f"the run in {path} is at step {state['step']} already: give a larger --stop-at, or none")
    try:
        if settings.lora_rank:
            adapt(loaded.model, settings.lora_config(), state.get("adapter"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    device = ranks.pick_device(pick_device(settings.device))
    run = assemble_run(settings, device, corpus, loaded.tokenizer, loaded.model, ranks)
    try:
        for optimizer, kept in zip(run.optimizers, state["optimizers"], strict=True):
            restore_optimizer(optimizer, kept, state["step"])
        if run.average:
            run.average.restore(state.get("average"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: its optimizers or average: {error}") from None
    run.saved_in, run.saved_step = path, state["step"]
    run.step, run.train_seconds = state["step"], state["train_seconds"]
    run.best_loss, run.best_step = state["best_loss"], state["best_step"]
    if state["threads"] != torch.get_num_threads():
        print(f"NOTE: the run used {state['threads']} threads, now {torch.get_num_threads()}: close, but not bit-exact")
    if state["processes"] != ranks.size:
        print(f"NOTE: the run had {state['processes']} ranks, now {ranks.size}: close, but not bit-exact")
    return run


def settings_to_resume(saved: TrainSettings, given: dict, path: Path, paths: RunPaths) -> TrainSettings:
    """The settings saved in `path`, changed by the flags given; ValueError that names a flag that contradicts them."""
    for name, value in given.items():
        if name not in ADJUSTABLE and value != getattr(saved, name) and value != AUTO:
            raise ValueError(
                f"{cli.flag_of(name)} {value} contradicts the run in {path} ({getattr(saved, name)}): "
                "leave the flag out, or start a new run with another --out"
            )
    fixed = {"data": saved.data, "preset": saved.preset, "out": str(paths.best)}  # the files may have been renamed
    return dataclasses.replace(saved, **{"stop_at": None, **given, **fixed})


# --- Saving ----------------------------------------------------------------------------------------------------------


def origin_of(run: Run) -> dict:
    """Where a checkpoint came from, for people who find the file later."""
    return {
        "corpus": run.corpus.name,
        "corpus_sha256": run.corpus.sha256,
        "preset": run.settings.preset,
        "step": run.step,
        "val_loss": run.best_loss,
        "train_seconds": run.train_seconds,
        "seed": run.settings.seed,
        "torch": str(torch.__version__),  # a plain string: the version object is no plain data
    }


def save_best(run: Run) -> None:
    """Write what sampling needs: the model, or its adapters if only they are trained."""
    if config := run.settings.lora_config():
        save_adapter(run.paths.best, run.model, run.tokenizer, config, origin_of(run))
    else:
        save_checkpoint(run.paths.best, run.model, run.tokenizer, origin_of(run), training=None)


def save_training(run: Run) -> None:
    """Write the state that `resume_run` reads; rank 0 does so for all."""
    state = {
        "settings": dataclasses.asdict(run.settings),
        "corpus_sha256": run.corpus.sha256,
        "step": run.step,
        "train_seconds": run.train_seconds,
        "best_loss": run.best_loss,
        "best_step": run.best_step,
        "threads": torch.get_num_threads(),
        "processes": run.ranks.size,
        "launch": run.ranks.launch,
        "optimizers": [optimizer.state_dict()["state"] for optimizer in run.optimizers],
    }
    if run.settings.lora_rank:
        state["adapter"] = {name: tensor.cpu() for name, tensor in adapter_weights(run.model).items()}
    if run.average:
        state["average"] = {name: tensor.cpu() for name, tensor in run.average.averages.items()}
    previous = run.paths.previous if run.saved_in == run.paths.last else None  # a damaged one must not push out a whole
    if run.ranks.first:
        save_checkpoint(run.paths.last, run.model, run.tokenizer, origin_of(run), state, previous)
    run.saved_in, run.saved_step = run.paths.last, run.step


def where_kept(run: Run) -> str:
    """What a user still has after a failure."""
    if not run.saved_in:
        return "nothing of this run was saved yet"
    best = run.paths.best
    hint = f" ({best} is still the earlier run's)" if best.exists() else f" ({best} comes with the first evaluation)"
    return (
        f"saved at step {run.saved_step} of {run.settings.steps}; go on with: {next_command(run, 'main.py --resume')}"
        f"{'' if run.best_step else hint}"
    )


def next_command(run: Run, command: str) -> str:
    """A command line for the user to type, with --out or --checkpoint only where it is not the default."""
    flag = {"main.py --resume": "--out", "generate.py": "--checkpoint"}[command]
    if run.settings.lora_rank and command == "generate.py":
        return f"python generate.py --checkpoint {run.settings.init_from} --lora {run.paths.best}"
    start = "torchrun …" if run.ranks.size > 1 and flag == "--out" else "python"
    return f"{start} {command}" + (f" {flag} {run.paths.best}" if run.settings.out != TrainSettings.out else "")
