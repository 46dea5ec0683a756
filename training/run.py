"""A training run: what main.py builds, in one object, for all that a run does beside its steps."""

from argparse import Namespace
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from corpora.texts import Corpus, bigram_entropy
from data_setup import ShiftedWindowDataset
from support.device import wants_compile
from tiny_decoder import TinyGPT
from tokenizer import Tokenizer
from training.distributed import DistContext
from training.state import RunPaths, TrainState


@dataclass
class Run:
    """What a run works with. Saved are settings, state, and the tensors of model, optimizers and average."""

    settings: Namespace
    corpus: Corpus
    tokenizer: Tokenizer
    train_set: ShiftedWindowDataset
    val_tokens: np.ndarray  # (N,)
    model: TinyGPT
    optimizers: list[torch.optim.Optimizer]
    average: AveragedModel | None
    scaler: torch.amp.GradScaler  # does nothing but in float16
    device: torch.device
    dtype: torch.dtype  # of matrix products
    state: TrainState
    files: RunPaths
    dist: DistContext
    saved_in: Path | None = None  # the file that holds the newest whole training state, …
    saved_step: int = 0  # … and its step

    @property
    def last_step(self) -> int:
        """The step after which this call ends: the last, --stop-at, or this one when --patience is over."""
        if self.settings.patience and self.state.stale >= self.settings.patience:
            return self.state.step
        return min(self.settings.steps, self.settings.stop_at or self.settings.steps)

    @property
    def model_to_keep(self) -> TinyGPT:
        """The model to evaluate and to save as the best: the average of the weights if there is one."""
        return self.average.module if self.average else self.model

    def compiled(self, model: TinyGPT) -> nn.Module:
        """The model itself, or torch.compile's version of it, if --compile says so; PyTorch remembers that."""
        return torch.compile(model) if wants_compile(self.settings.compile, self.device) else model

    @cached_property
    def val_bytes(self) -> int:
        """The length of the validation text in UTF-8."""
        return sum(len(block.encode()) for block in self.corpus.val.blocks())

    @cached_property
    def bigram_entropy(self) -> float:
        """See `corpora.texts.bigram_entropy`: of the first million training tokens."""
        return bigram_entropy(self.train_set.tokens[: 2**20])
