"""The files of a training run: their names, whether they can be written, and what becomes of an earlier run's."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from checkpoint import remove_leftovers


@dataclass(frozen=True)
class RunPaths:
    """The files of a run, named after its best checkpoint `NAME.pth`."""

    best: Path

    @property
    def last(self) -> Path:
        """The training state, to resume from."""
        return self.best.with_suffix(".last.pth")

    @property
    def metrics(self) -> Path:
        """One JSON line per evaluation."""
        return self.best.with_suffix(".metrics.jsonl")

    def all(self) -> tuple[Path, ...]:
        return self.best, self.last, self.metrics


def check_output(paths: RunPaths) -> None:
    """Find out before training whether the output can be written: ValueError or OSError if not."""
    if paths.best.suffix != ".pth" or not paths.best.stem:
        raise ValueError(f"--out {paths.best} must name a file that ends in .pth")
    if paths.best.is_dir():
        raise ValueError(f"--out {paths.best} is a folder")
    paths.best.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(paths.best.parent, os.W_OK):
        raise PermissionError(f"--out: cannot write into {paths.best.parent}")
    for path in (paths.best, paths.last):
        remove_leftovers(path)


def keep_earlier_run(paths: RunPaths) -> None:
    """Give the files of an earlier run under this name the first free number: NAME.1.pth, NAME.1.last.pth, …

    They are linked, not moved, so that NAME.pth stays loadable until the new run's first save replaces it.
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
            os.link(path, copy)
    paths.last.unlink(missing_ok=True)
    paths.metrics.unlink(missing_ok=True)
    print(f"the earlier run in {paths.best} is kept as {kept.best}")


def trim_metrics(path: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last saved step, and a torn one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")
