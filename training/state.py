"""What is saved of a training run, and the files it is saved in."""

import contextlib
import dataclasses
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
from support.durable import locked, remove_leftovers, sync_folder, write_atomically
from support.plain import check_fields


@dataclass
class TrainState:
    """How far a run has come: with the settings and the tensors, all that is saved to resume it bit-exactly."""

    corpus_sha256: str
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
    launch: str = ""  # names the torchrun that started the run, the same after it has restarted the ranks

    def to_plain(self) -> dict:
        """For the header of a checkpoint; an infinite loss is null there."""
        return {**dataclasses.asdict(self), "best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_plain(cls, found: dict) -> "TrainState":
        """The inverse of `to_plain`. Raises ValueError if a field is missing, of another type or out of range."""
        fields = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        check_fields(found, {**fields, "corpus_sha256": str, "best_loss": (float, type(None))})
        state = cls(**{name: found[name] for name in fields})
        for name in ("step", "loss_steps", "best_step", "stale", "threads", "processes"):
            if not 0 <= getattr(state, name) <= 10**9:
                raise ValueError(f"its entry {name!r} is out of range")
        for name in ("train_seconds", "loss_sum", "seconds_sum"):
            if not 0 <= getattr(state, name) < math.inf:
                raise ValueError(f"its entry {name!r} is no sensible number")
        if state.best_loss is None:
            state.best_loss = math.inf
        elif not 0 <= state.best_loss < math.inf:
            raise ValueError("its entry 'best_loss' is no sensible number")
        return state


@dataclass(frozen=True)
class RunPaths:
    """The files of a run, named after its best checkpoint `NAME.pth`."""

    best: Path

    @property
    def last(self) -> Path:
        """The training state, to resume from."""
        return self.best.with_suffix(".last.pth")

    @property
    def previous(self) -> Path:
        """The training state before that, should the last one be damaged."""
        return self.best.with_suffix(".previous.pth")

    @property
    def metrics(self) -> Path:
        """One JSON line per evaluation."""
        return self.best.with_suffix(".metrics.jsonl")

    def all(self) -> tuple[Path, ...]:
        return self.best, self.last, self.previous, self.metrics


def check_output(paths: RunPaths) -> None:
    """Raise UserError, before any file is made, if --out cannot name a run."""
    if paths.best.suffix != ".pth" or paths.best.stem.endswith((".last", ".previous")):
        raise UserError(
            f"--out {paths.best} must name a file that ends in .pth (and not in .last.pth or .previous.pth)"
        )
    if paths.best.is_dir():
        raise UserError(f"--out {paths.best} is a folder: name a file in it, such as {paths.best / 'model.pth'}")
    # The longest name of a run's files: what is written while an earlier run's metrics are copied.
    longest = f"{paths.best.stem}.9999.metrics.jsonl.{os.getpid()}.tmp"
    folder = next(parent for parent in paths.best.absolute().parents if parent.is_dir())
    most = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if len(os.fsencode(longest)) > most:
        raise UserError(
            f"--out {paths.best}: the name is too long, with the ending .9999.metrics.jsonl.{os.getpid()}.tmp for a "
            f"file system that takes {most} bytes: choose a shorter one"
        )


@contextlib.contextmanager
def lock_output(paths: RunPaths) -> Iterator[None]:
    """Hold the run's files for this process, and find out before training whether its folder can be written.

    What a killed run left half-written is removed. Raises UserError if another process holds them, OSError if the
    folder cannot be made or written.
    """
    folder = paths.best.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {paths.best}: {folder} is no folder; choose another --out") from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--out: cannot write into {folder}")
    refusal = f"--out {paths.best}: another process is training into it; wait for it, stop it, or choose another --out"
    with locked(paths.best.with_suffix(".lock"), refusal):
        for path in paths.all():
            remove_leftovers(path)
        yield


def keep_earlier_run(paths: RunPaths) -> None:
    """Give the files of an earlier run under this name the first free number: NAME.1.pth, NAME.1.last.pth, …

    They are linked (copied, where the file system has no links), not moved: NAME.pth stays loadable until the new
    run's first save replaces it, and a kill at any moment loses nothing.
    """
    earlier = [path for path in paths.all() if path.exists()]
    if not earlier:
        return
    number = 1
    while any(path.exists() for path in RunPaths(paths.best.with_suffix(f".{number}.pth")).all()):
        number += 1
    kept = RunPaths(paths.best.with_suffix(f".{number}.pth"))
    for path, copy in zip(paths.all(), kept.all(), strict=True):
        if path.exists():
            link_or_copy(path, copy)
    sync_folder(paths.best.parent)
    for path in (paths.previous, paths.last, paths.metrics):
        path.unlink(missing_ok=True)
    print(f"the earlier run in {paths.best} is kept as {kept.best}")


def link_or_copy(path: Path, copy: Path) -> None:
    """A second name for the file at `path`, or a second file where the file system has no hard links."""
    try:
        os.link(path, copy)
    except (OSError, AttributeError):
        with open(path, "rb") as source:
            write_atomically(copy, lambda file: shutil.copyfileobj(source, file))


def read_newest(paths: RunPaths) -> tuple[dict, dict[str, Tensor], Path]:
    """Header and tensors of the newest training state that is whole, and its file: `last`, or with a loud line the one
    before it.

    Raises like `read_checkpoint` if neither can be used.
    """
    try:
        return *read_state(paths.last), paths.last
    except UserError as error:
        try:
            header, tensors = read_state(paths.previous)
        except (UserError, OSError):
            raise error from None
        print(f"WARNING: {error}", file=sys.stderr)
        step = header["training"]["step"]
        print(f"WARNING: continuing from the state before it, {paths.previous}, step {step}", file=sys.stderr)
        return header, tensors, paths.previous


def read_state(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a training state, whose plain part is checked. Raises like `read_checkpoint`."""
    header, tensors = read_checkpoint(path, TRAINING)
    with user_errors(f"{path} cannot be used: "):
        check_fields(header, {"training": dict, "settings": dict})
        TrainState.from_plain(header["training"])
    return header, tensors


def trim_metrics(path: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last saved step, and a torn one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # no UTF-8, no JSON, or not a line of ours
            if json.loads(line.decode())["step"] <= step and line.endswith(b"\n"):
                kept.append(line)
    write_atomically(path, lambda file: file.writelines(kept))
