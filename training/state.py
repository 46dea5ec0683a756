"""What is saved of a training run, and the files it is saved in."""

import contextlib
import dataclasses
import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from formats.checkpoint import TRAINING, read_checkpoint
from support.command import UserError, user_errors
from support.durable import locked, remove_leftovers, replace, sync_folder, write_atomically
from support.plain import check_fields, parse_json
from training.distributed import DistContext

MAX_NAME = 200  # bytes of NAME: file systems take 255, and what is written beside it is longer


@dataclass
class TrainState:
    """How far a run has come: with the settings and the tensors, all that is saved to resume it bit-exactly."""

    step: int = 0
    train_seconds: float = 0.0  # steps only: evaluation, saving and set-up left out
    loss_sum: float = 0.0  # of the training losses since the last evaluation, …
    loss_steps: int = 0  # … and their number
    seconds_sum: float = 0.0  # what they took
    best_loss: float | None = None  # none before the first evaluation
    best_step: int = 0
    stale: int = 0  # evaluations since the last new best
    skipped: int = 0  # steps that updated nothing, because a gradient overflowed in float16
    loss_scale: float = 0.0  # what the loss is multiplied by in float16, 0 in others, …
    scale_steps: int = 0  # … and for how many steps so far
    planned: bool = False  # whether the number of steps is final
    threads: int = 1
    processes: int = 1
    corpus_sha256: str = ""
    base: str = ""  # the digest of the model that adapters are for, …
    new_characters: int = 0  # … and how many characters the vocabulary has that its own did not

    def evaluation_due(self, settings: Namespace) -> bool:
        """Whether an evaluation belongs to this step and has not been made."""
        return self.loss_steps > 0 and (self.step % settings.eval_every == 0 or self.step == settings.steps)

    def note_evaluation(self, val_loss: float) -> bool:
        """Whether this validation loss is the lowest so far; remember the lowest, and how long ago it was."""
        self.stale += 1
        if self.best_loss is None or val_loss < self.best_loss:
            self.best_loss, self.best_step, self.stale = val_loss, self.step, 0
        return self.stale == 0

    @classmethod
    def from_plain(cls, fields: dict) -> "TrainState":
        """The inverse of `dataclasses.asdict`. Raises ValueError if a field is missing or wrong."""
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        check_fields(fields, kinds | {"best_loss": (float, type(None))})
        state = cls(**{name: fields[name] for name in kinds})
        for name, value in vars(state).items():
            largest = 10**9 if isinstance(value, int) else sys.float_info.max
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise ValueError(f"its entry {name!r} is out of range")
        return state


class RunPaths:
    """The files of a run, named after its best checkpoint `NAME.pth`."""

    def __init__(self, best: Path):
        name = str(best).removesuffix(".pth")
        self.best = best
        self.last = Path(f"{name}.last.pth")  # the training state, to resume from
        self.previous = Path(f"{name}.previous.pth")  # the one before that, should the last one be damaged
        self.metrics = Path(f"{name}.metrics.jsonl")  # one JSON line per evaluation
        self.story = Path(f"{name}.story.jsonl")  # what the page replays: a frame at step 0 and per evaluation
        self.lock = Path(f"{name}.lock")
        self.all = (self.best, self.metrics, self.story, self.previous, self.last)

    def check_name(self) -> None:
        """Raise UserError, before any file is made, if --out cannot name a run."""
        if self.best.suffix != ".pth" or self.best.stem.endswith((".last", ".previous")) or self.best.is_dir():
            raise UserError(f"--out {self.best} must name a file in .pth, and not in .last.pth or .previous.pth")
        if len(os.fsencode(self.best.stem)) > MAX_NAME:
            raise UserError(f"--out {self.best}: the name is too long: at most {MAX_NAME} bytes before .pth")

    def exist(self) -> bool:
        """Whether there is any of them."""
        return any(path.exists() for path in self.all)

    def keep_earlier_run(self) -> None:
        """Give the files of an earlier run under this name the first free number: NAME.1.pth, NAME.1.last.pth, …

        Free is a number without files, whose lock can be had: without it, a run that has yet to save has that name.
        The best model keeps its name too, for generate.py, until the new run's first save. A kill at any moment loses
        nothing. The story of a run that was killed before it saved anything is dropped.
        """
        alone = [path for path in self.all if path.exists()] == [self.story]
        if alone and b"".join(lines_until(self.story, sys.maxsize)) == self.story.read_bytes():
            self.story.unlink()
        if not self.exist():
            return
        for number in itertools.count(1):
            copies = RunPaths(self.best.with_suffix(f".{number}.pth"))
            if copies.exist():
                continue
            with contextlib.suppress(UserError), locked(copies.lock, "another run has this name"):
                if self.best.exists():
                    write_atomically(copies.best, lambda file: file.write(self.best.read_bytes()))
                for path, copy in zip(self.all[1:], copies.all[1:], strict=True):
                    if path.exists():
                        replace(path, copy)
                sync_folder(self.best.parent)
                print(f"the earlier run in {self.best} is kept as {copies.best}")
                return

    def read_newest(self) -> tuple[dict, dict[str, Tensor], Path]:
        """Header and tensors of the newest training state that is whole, and its file: `last`, or with a warning the
        one before it.

        Raises like `read_checkpoint` if neither can be used.
        """
        if not self.last.exists() and not self.previous.exists():
            raise UserError(f"--resume: there is no run {self.best}: give its --out, or start without --resume")
        try:
            return *read_state(self.last), self.last
        except UserError as error:
            with contextlib.suppress(UserError, OSError):
                header, tensors = read_state(self.previous)
                step = header["training"]["step"]
                print(f"WARNING: {error}; continuing from {self.previous}, step {step}", file=sys.stderr)
                return header, tensors, self.previous
            raise

    def trim_metrics(self, step: int) -> None:
        """Drop the lines of metrics and story that a killed run wrote after its last saved step, and torn ones."""
        for path in (self.metrics, self.story):
            if path.exists():
                lines = lines_until(path, step)
                write_atomically(path, lambda file, lines=lines: file.writelines(lines))


def lines_until(path: Path, step: int) -> list[bytes]:
    """The whole lines of a file of JSON lines whose `step` is at most this one."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # no UTF-8, no JSON, or not a line of ours
            if parse_json(line.decode())["step"] <= step and line.endswith(b"\n"):
                kept.append(line)
    return kept


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

    What a killed run left half-written is removed. Raises UserError if the name will not do or another run holds the
    files, OSError if the folder cannot be made or written.
    """
    files = RunPaths(Path(out))
    files.check_name()
    if not dist.first:
        yield files
        return
    files.best.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(files.best)).parent  # of a link
    if target.exists() and not os.access(target, os.W_OK):
        raise OSError(f"--out {out}: {target} cannot be written; choose another --out")
    with locked(files.lock, f"--out {out}: another process trains into it; wait for it, or choose another --out"):
        for path in files.all:
            remove_leftovers(path, older_than=0.0)
        yield files
