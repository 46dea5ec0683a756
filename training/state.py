"""What is saved of a training run, and the files it is saved in."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from formats.checkpoint import TRAINING, read_checkpoint
from support.command import UserError, user_errors
from support.durable import locked, remove_leftovers, sync_folder, temporary_name, write_atomically
from support.plain import check_fields
from training.distributed import DistContext


@dataclass
class TrainState:
    """How far a run has come: with the settings and the tensors, all that is saved to resume it bit-exactly."""

    step: int = 0
    train_seconds: float = 0.0  # steps only: evaluation, saving and set-up left out
    loss_sum: float = 0.0  # of the training losses since the last evaluation, …
    loss_steps: int = 0  # … and their number
    seconds_sum: float = 0.0  # what they took
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0  # evaluations since the last new best
    overfitting_noted: bool = False  # since the last new best
    planned: bool = False  # whether the number of steps is final
    threads: int = 1
    processes: int = 1
    corpus_sha256: str = ""
    launch: str = ""  # names the torchrun that started the run, the same after it has restarted the ranks

    def note_best(self, val_loss: float) -> bool:
        """Whether this is the lowest validation loss so far; if so, remember it."""
        better = val_loss < self.best_loss
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best_loss, self.best_step, self.overfitting_noted = val_loss, self.step, False
        return better

    def to_plain(self) -> dict:
        """For the header of a checkpoint; an infinite loss is null there."""
        return {**dataclasses.asdict(self), "best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_plain(cls, found: dict) -> "TrainState":
        """The inverse of `to_plain`. Raises ValueError if a field is missing, of another type or out of range."""
        fields = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        check_fields(found, {**fields, "best_loss": (float, type(None))})
        state = cls(**{name: found[name] for name in fields})
        for name, value in vars(state).items():
            largest = 10**9 if isinstance(value, int) else sys.float_info.max
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise ValueError(f"its entry {name!r} is out of range")
        state.best_loss = math.inf if state.best_loss is None else state.best_loss
        return state


class RunPaths:
    """The files of a run, named after its best checkpoint `NAME.pth`."""

    def __init__(self, best: Path):
        name = str(best).removesuffix(".pth")
        self.best = best
        self.last = Path(f"{name}.last.pth")  # the training state, to resume from
        self.previous = Path(f"{name}.previous.pth")  # the one before that, should the last one be damaged
        self.metrics = Path(f"{name}.metrics.jsonl")  # one JSON line per evaluation
        self.tensorboard = Path(f"{name}.tensorboard")  # a folder
        self.lock = Path(f"{name}.lock")
        self.all = (self.best, self.last, self.previous, self.metrics)

    def check_name(self) -> None:
        """Raise UserError, before any file is made, if --out cannot name a run."""
        if self.best.suffix != ".pth" or self.best.stem.endswith((".last", ".previous")):
            raise UserError(f"--out {self.best} must end in .pth, and not in .last.pth or .previous.pth")
        if self.best.is_dir():
            raise UserError(f"--out {self.best} is a folder: name a file in it, such as {self.best / 'model.pth'}")
        folder = next(parent for parent in self.best.absolute().parents if parent.is_dir())
        most = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        most -= len(temporary_name(Path(".9999.metrics.jsonl")).name)  # while an earlier run's metrics are copied
        if len(os.fsencode(self.best.stem)) > most:
            raise UserError(f"--out {self.best}: the name is too long: choose one of at most {most} bytes before .pth")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's files for this process, and find out before training whether its folder can be written.

        What a killed run left half-written is removed. Raises UserError if another process holds them, OSError if the
        folder cannot be made or written.
        """
        folder = self.best.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out {self.best}: {folder} is no folder; choose another --out") from None
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"--out: cannot write into {folder}")
        refusal = f"--out {self.best}: another process trains into it; wait for it, stop it, or choose another --out"
        with locked(self.lock, refusal):
            for path in self.all:
                remove_leftovers(path, older_than=0.0)
            yield

    def existing(self) -> list[Path]:
        """Those that are there, the folder of TensorBoard among them."""
        return [path for path in (*self.all, self.tensorboard) if path.exists()]

    def keep_earlier_run(self) -> None:
        """Give the files of an earlier run under this name the first free number: NAME.1.pth, NAME.1.last.pth, …

        Free is a number without files, whose lock can be had: without it, a run that has yet to save has that name.
        The files are linked (copied, where the file system has no links), not moved: NAME.pth stays loadable until the
        new run's first save replaces it, and a kill at any moment loses nothing.
        """
        if not self.existing():
            return
        for number in itertools.count(1):
            copies = RunPaths(self.best.with_suffix(f".{number}.pth"))
            if copies.existing():
                continue
            with contextlib.suppress(UserError), locked(copies.lock, "another run has this name"):
                self.link_as(copies)
                break
        print(f"the earlier run in {self.best} is kept as {copies.best}")

    def link_as(self, copies: "RunPaths") -> None:
        """Give these files the names `copies`, and remove the own names of all but the best model."""
        for path, copy in zip(self.all, copies.all, strict=True):
            if path.exists():
                link_or_copy(path, copy)
        if self.tensorboard.exists():
            os.replace(self.tensorboard, copies.tensorboard)
        sync_folder(self.best.parent)
        for path in (self.previous, self.last, self.metrics):
            path.unlink(missing_ok=True)

    def read_newest(self) -> tuple[dict, dict[str, Tensor], Path]:
        """Header and tensors of the newest training state that is whole, and its file: `last`, or with a warning the
        one before it.

        Raises like `read_checkpoint` if neither can be used.
        """
        try:
            return *read_state(self.last), self.last
        except UserError as error:
            try:
                header, tensors = read_state(self.previous)
            except (UserError, OSError):
                raise error from None
            print(f"WARNING: {error}", file=sys.stderr)
            step = header["training"]["step"]
            print(f"WARNING: continuing from the state before it, {self.previous}, step {step}", file=sys.stderr)
            return header, tensors, self.previous

    def trim_metrics(self, step: int) -> None:
        """Drop the lines that a killed run wrote after its last saved step, and a torn one."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_bytes().splitlines(keepends=True):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # no UTF-8, no JSON, or not a line of ours
                if json.loads(line.decode())["step"] <= step and line.endswith(b"\n"):
                    kept.append(line)
        write_atomically(self.metrics, lambda file: file.writelines(kept))


def link_or_copy(path: Path, copy: Path) -> None:
    """A second name for the file at `path`, or a second file where the file system has no hard links."""
    try:
        os.link(path, copy)
    except (OSError, AttributeError):
        with open(path, "rb") as source:
            write_atomically(copy, lambda file: shutil.copyfileobj(source, file))


def read_state(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a training state, whose plain part is checked. Raises like `read_checkpoint`."""
    header, tensors = read_checkpoint(path, TRAINING)
    with user_errors(f"{path} cannot be used: "):
        check_fields(header, {"training": dict, "settings": dict})
        TrainState.from_plain(header["training"])
    return header, tensors


@contextlib.contextmanager
def open_files(out: str, dist: DistContext) -> Iterator[RunPaths]:
    """The files of the run --out, which the first process holds for all; others cannot train into them meanwhile.

    Raises UserError or OSError if the name or its folder will not do.
    """
    files = RunPaths(Path(out))
    files.check_name()
    folder_is_new = not files.best.parent.exists()
    try:
        with files.locked() if dist.first else contextlib.nullcontext():
            yield files
    except UserError:
        if folder_is_new:
            with contextlib.suppress(OSError):  # it is not empty, or not there
                files.best.parent.rmdir()
        raise
