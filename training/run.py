"""A training run: what it carries, and how it begins or resumes."""

import contextlib
import dataclasses
import importlib.util
import shutil
import time
from argparse import Namespace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from corpora.bpe import BPETokenizer
from corpora.texts import bigram_entropy, count_unknown, encode_split
from data_setup import DATA_FOLDER, Corpus, ShiftedWindowDataset, load_corpus
from formats.adapter import adapt
from formats.checkpoint import Tokenizer, check_tensors, checked_model, load_model, model_from_weights, model_weights
from lora import add_adapters, lora_config
from optimizers import averaged_model, make_optimizers
from support.command import UserError, user_errors
from support.device import check_memory, pick_device, pick_dtype
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import BOS, CharTokenizer
from training import checks
from training.distributed import ALONE, DistContext
from training.optimizer_state import restore_optimizers, trained_parameters
from training.state import RunPaths, TrainState, read_state

TOKEN_FOLDER = DATA_FOLDER / "tokens"  # where the ids of large texts are kept
MOST_UNKNOWN = 0.01  # share of characters that the base of a fine-tuning may not know


class Run:
    """Everything that a training run works with. Of this, `state`, the settings and the tensors are saved."""

    def __init__(self, settings: Namespace, corpus: Corpus, tokenizer: Tokenizer, model: TinyGPT, dist: DistContext):
        """A run at step 0 around a model, on the device that holds the model; the corpus is encoded.

        Raises UserError if the batch cannot be split or the corpus is too short.
        """
        checks.check_split(settings, dist)
        self.corpus, self.tokenizer, self.model, self.dist = corpus, tokenizer, model, dist
        self.device = model.head.weight.device
        self.dtype = pick_dtype(settings.dtype, self.device)
        chosen = {"data": corpus.name, "dtype": str(self.dtype).removeprefix("torch.")}
        self.settings = Namespace(**vars(settings) | chosen)  # resuming must not choose again
        self.paths = RunPaths(Path(settings.out))
        with dist.one_per_machine_first("tokens"):
            train_tokens = encode_split(tokenizer, corpus.train, TOKEN_FOLDER)
            with user_errors():
                self.train_set = ShiftedWindowDataset(train_tokens, settings.max_seq)
            self.val_tokens = encode_split(tokenizer, corpus.val, TOKEN_FOLDER)
        dist.require_same("number of tokens", str(len(train_tokens)))
        self.val_bytes = corpus.val.count_bytes()  # in UTF-8
        self.state = TrainState(corpus.sha256, threads=torch.get_num_threads(), processes=dist.size, launch=dist.launch)
        self.saved_in: Path | None = None  # the file that holds the newest whole training state
        self.saved_step = 0
        self.last_line = time.monotonic()  # when the run's user last read something
        self.optimizers = make_optimizers(model, self.settings)
        # The model, compiled and wrapped as needed; the weights are the model's. All ranks have rank 0's from here on.
        self.network = dist.wrap(torch.compile(model) if self.compiled else model)
        self.average = averaged_model(model, settings.ema_decay) if settings.ema_decay else None

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is asked for, or left to us and at hand: it needs Triton and a C compiler."""
        if self.settings.compile is not None:
            return self.settings.compile
        tools = importlib.util.find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang")))
        return self.device.type == "cuda" and bool(tools)

    @property
    def model_to_keep(self) -> TinyGPT:
        """The model to evaluate and to save as the best: the average of the weights if there is one."""
        return self.average.module if self.average else self.model

    @cached_property
    def bigram_entropy(self) -> float:
        """See `bigram_entropy`: of the first 4 million training tokens."""
        return bigram_entropy(self.train_set.tokens[: 2**22])

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix products in the run's precision, the rest in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


# --- Beginning -------------------------------------------------------------------------------------------------------


def open_run(settings: Namespace, given: set[str], held: contextlib.ExitStack, dist: DistContext) -> Run:
    """The new or resumed run that the flags ask for; `held` keeps others from writing its files."""
    paths = RunPaths(Path(settings.out))
    paths.check_name()
    dist.require_same("command line", repr((settings, sorted(given))))
    if settings.resume or restarted(paths, dist):
        return resume_run(settings, given, held, dist)
    checks.refuse_unused(settings, given)
    device = dist.pick_device(pick_device(settings.device))
    if settings.init_from:
        run = start_fine_tuning(settings, given, device, dist)
    else:
        run = start_run(settings, device, dist, fit_window="max_seq" not in given)
    if dist.first:
        held.enter_context(paths.locked())
        paths.keep_earlier_run()
    return run


def restarted(paths: RunPaths, dist: DistContext) -> bool:
    """Whether torchrun has run this command before, lost a rank, and tries again, with a state to resume from."""
    ours = False
    if dist.launch and dist.first:
        with contextlib.suppress(UserError):  # there is no state, or not one of ours
            ours = paths.read_newest()[0]["training"]["launch"] == dist.launch
    return bool(dist.largest(ours))


def start_run(settings: Namespace, device: torch.device, dist: DistContext = ALONE, fit_window: bool = False) -> Run:
    """A new run at step 0; with fit_window a text that is shorter than the window makes the window smaller."""
    corpus = shared_corpus(settings.data, dist)
    tokenizer = choose_tokenizer(settings, corpus)
    if fit_window:
        settings = with_fitting_window(settings, corpus, tokenizer)
    shape = vars(settings) | {"vocab_size": tokenizer.vocab_size}
    config = TinyGPTConfig(**{field.name: shape[field.name] for field in dataclasses.fields(TinyGPTConfig)})
    check_memory(checks.least_memory(settings, tokenizer.vocab_size), device)
    torch.manual_seed(settings.seed)
    model = TinyGPT(config, settings.init)
    return Run(settings, corpus, tokenizer, model.to(device), dist)


def with_fitting_window(settings: Namespace, corpus: Corpus, tokenizer: Tokenizer) -> Namespace:
    """The settings with a smaller window, and a note, if the text is shorter than the preset's."""
    if len(corpus.train) > 2**16:
        return settings
    longest = max(1, len(encode_split(tokenizer, corpus.train, TOKEN_FOLDER)) - 1)
    if longest < settings.max_seq:
        print(f"NOTE: the text is shorter than the window of {settings.max_seq}: --max-seq {longest} is used")
    return Namespace(**vars(settings) | {"max_seq": min(longest, settings.max_seq)})


def shared_corpus(spec: str, dist: DistContext) -> Corpus:
    """The corpus, fetched once per machine; UserError if the machines came to different ones."""
    with dist.one_per_machine_first("corpus"):
        corpus = load_corpus(spec)
    dist.require_same("corpus", corpus.sha256)
    return corpus


def choose_tokenizer(settings: Namespace, corpus: Corpus) -> Tokenizer:
    """The characters of the corpus's training part, or what --tokenizer names."""
    if settings.tokenizer == CharTokenizer.kind:
        return CharTokenizer.from_blocks(corpus.train.blocks(), BOS if corpus.train.separated else None)
    return BPETokenizer.load(Path(settings.tokenizer), BOS if corpus.train.separated else "\n")


def start_fine_tuning(settings: Namespace, given: set[str], device: torch.device, dist: DistContext) -> Run:
    """A new run at step 0 that begins as the model of --init-from, with fresh adapters if --lora-rank says so.

    Raises UserError if a given flag contradicts that model or its vocabulary does not know the text's characters.
    """
    adapters = lora_config(settings)
    base = load_model(Path(settings.init_from))
    settings = checks.settings_for_base(settings, given, base.model.config)
    corpus = shared_corpus(settings.data, dist)
    torch.manual_seed(settings.seed)
    dropouts = {"dropout": settings.dropout, "attention_dropout": settings.attention_dropout}
    config = dataclasses.replace(base.model.config, **dropouts)
    check_memory(checks.least_memory(settings, config.vocab_size), device)
    model = model_from_weights(config, model_weights(base.model))
    if adapters:
        with user_errors():
            add_adapters(model, adapters)
    run = Run(settings, corpus, base.tokenizer, model.to(device), dist)
    tokens = (run.train_set.tokens, run.val_tokens)
    share = sum(count_unknown(base.tokenizer, ids) for ids in tokens) / sum(len(ids) for ids in tokens)
    print(f"base     {settings.init_from}; {share:.2%} of the characters of {corpus.name} are unknown to it")
    if share > MOST_UNKNOWN:
        raise UserError(
            f"{share:.1%} of the characters of {corpus.name} are unknown to {settings.init_from}: fine-tune a base "
            "with byte-level BPE, which knows all of them (python train_tokenizer.py, then main.py --tokenizer)"
        )
    return run


# --- Resuming --------------------------------------------------------------------------------------------------------


def resume_run(settings: Namespace, given: set[str], held: contextlib.ExitStack, dist: DistContext) -> Run:
    """The run whose training state lies beside --out, as it was after its last saved step: read, check, restore.

    Raises UserError that names a flag that contradicts the saved run.
    """
    paths = RunPaths(Path(settings.out))
    if dist.first and (paths.last.exists() or paths.previous.exists()):  # else reading says what is missing
        held.enter_context(paths.locked())
    header, tensors, path = read_shared(paths, dist)
    try:
        saved = checks.saved_settings(header["settings"])
    except UserError as error:
        raise UserError(f"{path} cannot be used: its settings: {error}") from None
    settings = checks.settings_to_resume(saved, settings, given, path)
    checks.refuse_unused(settings, given)
    state = TrainState.from_plain(header["training"])
    checks.check_progress(settings, state, path)
    run = restore_run(settings, header, tensors, path, dist)
    now = {name: getattr(run.state, name) for name in ("threads", "processes", "launch")}
    for name in ("threads", "processes"):
        if now[name] != getattr(state, name):
            print(f"NOTE: the run used {getattr(state, name)} {name}, now {now[name]}: close, but not bit-exact")
    run.state = dataclasses.replace(state, **now)
    run.saved_in, run.saved_step = path, state.step
    if dist.first:
        paths.trim_metrics(state.step)
    return run


def read_shared(paths: RunPaths, dist: DistContext) -> tuple[dict, dict[str, Tensor], Path]:
    """Rank 0's newest training state on every rank: header, tensors, file."""
    header, tensors, path = paths.read_newest() if dist.first else ({}, {}, paths.last)
    with dist.file_of_first(path) as copy:
        return (header, tensors, path) if dist.first else (*read_state(copy), path)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def restore_run(settings: Namespace, header: dict, tensors: dict[str, Tensor], path: Path, dist: DistContext) -> Run:
    """A run with the saved model, adapters, optimizers and average; UserError if they do not fit together."""
    step = header["training"]["step"]
    device = dist.pick_device(pick_device(settings.device))
    with user_errors(f"{path} cannot be used: "):
        loaded = checked_model(header, {name: tensor for name, tensor in tensors.items() if "/" not in name})
        if settings.max_seq > loaded.model.config.max_seq:
            raise ValueError(f"max_seq {settings.max_seq} is more than the model's {loaded.model.config.max_seq}")
        if adapters := lora_config(settings):
            adapt(loaded.model, adapters, part(tensors, "adapter/"))
    check_memory(checks.least_memory(settings, loaded.model.config.vocab_size), device)
    corpus = shared_corpus(settings.data, dist)
    if corpus.sha256 != header["training"]["corpus_sha256"]:
        raise UserError(f"--data {settings.data} is no longer the text that the run in {path} was trained on")
    by_characters = settings.tokenizer == CharTokenizer.kind and not settings.init_from
    if by_characters and loaded.tokenizer.to_plain() != choose_tokenizer(settings, corpus).to_plain():
        raise UserError(f"{path} cannot be used: its vocabulary is not that of {settings.data}")
    run = Run(settings, corpus, loaded.tokenizer, loaded.model.to(device), dist)
    with user_errors(f"{path} cannot be used: its optimizers or average: "):
        restore_optimizers(run.optimizers, part(tensors, "optimizer/"), step)
        averages = part(tensors, "average/")
        trained = trained_parameters(run.average.module) if run.average else {}
        check_tensors(averages, {name: p.shape for name, p in trained.items()})
    if run.average:
        run.average.n_averaged.fill_(step)
        run.average.module.load_state_dict(averages, strict=False)  # what is frozen is not saved again
    return run
