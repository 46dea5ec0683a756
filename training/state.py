"""The files of a training run: their names, whether they can be written, and what becomes of an earlier run's."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from formats.checkpoint import TRAINING, Checkpoint, check_training, load_checkpoint
from support.durable import locked, remove_leftovers, sync_folder, write_atomically


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
    """Raise ValueError, before any file is made, if --out cannot name a run."""
    if paths.best.suffix != ".pth" or paths.best.stem.endswith((".last", ".previous")):
        raise ValueError(
            f"--out {paths.best} must name a file that ends in .pth (and not in .last.pth or .previous.pth)"
        )
    if paths.best.is_dir():
        raise ValueError(f"--out {paths.best} is a folder")


@contextlib.contextmanager
def lock_output(paths: RunPaths) -> Iterator[None]:
    """Hold the run's files for this process, and find out before training whether its folder can be written.

    What a killed run left half-written is removed. Raises ValueError if another process holds them, OSError if the
    folder cannot be made or written.
    """
    folder = paths.best.parent
    folder.mkdir(parents=True, exist_ok=True)
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


def load_newest(paths: RunPaths) -> tuple[Checkpoint, Path]:
    """The newest training state that is whole, and its file: `last`, or with a loud line the one before it.

    Raises like `load_checkpoint` if neither can be used.
    """
    try:
        return load_training(paths.last), paths.last
    except ValueError as error:
        try:
            loaded = load_training(paths.previous)
        except (ValueError, OSError):
            raise error from None
        print(f"WARNING: {error}", file=sys.stderr)
        print(
            f"WARNING: going on from the state before it, {paths.previous}, step {loaded.training['step']}",
            file=sys.stderr,
        )
        return loaded, paths.previous


def load_training(path: Path) -> Checkpoint:
    """`load_checkpoint` of a training state whose every field is checked."""
    loaded = load_checkpoint(path, TRAINING)
    try:
        check_training(loaded.training)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return loaded


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
