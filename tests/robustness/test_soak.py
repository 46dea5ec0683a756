"""Soak: a long run in small, with hundreds of saves and evaluations and many resumes, in flat memory and flat files."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from faults import OUT, SMALL_RUN, Child, announced_step, train, write_corpus
from helpers import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs fork, and /proc to see memory"),
]
SAVES, RESUMES = 500, 20
ENDINGS = ("last.pth", "lock", "metrics.jsonl", "previous.pth", "pth", "story.jsonl")
GROWTH = 20 * 2**20  # bytes; a leak of one training state per save would be a hundred times as much


def observe(pid: int, folder: Path) -> tuple[int, int, int] | None:
    """Bytes of memory and open files of a process, and the files of its run; None if it has just ended."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        opened, files = len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(folder))
        return (pages * os.sysconf("SC_PAGE_SIZE"), opened, files) if pages else None


def test_five_hundred_saves_in_flat_memory_and_flat_files(tmp_path):
    folder, out = write_corpus(tmp_path), ["--out", OUT.best]
    child = Child(folder, "main.py", *SMALL_RUN, *out, "--steps", SAVES, "--eval-every", 1)
    seen = {}
    while os.waitpid(child.pid, os.WNOHANG)[0] == 0:
        if announced_step(child.stdout) > SAVES // 10:  # the first steps fill caches
            seen[announced_step(child.stdout)] = observe(child.pid, folder / "checkpoints")
        time.sleep(0.1)
    assert announced_step(child.stdout) == SAVES, child.stderr
    memory, opened, files = zip(*filter(None, seen.values()), strict=True)
    assert len(memory) > 20
    assert max(memory) - min(memory) < GROWTH
    assert max(opened) - min(opened) < 4, "a file or two is being written"
    assert max(files) <= 7, "best, last, previous, metrics, story, lock, and one being written"
    for turn in range(1, RESUMES + 1):
        train(folder, "--resume", *out, "--steps", SAVES + turn)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == [f"tiny_decoder.{end}" for end in ENDINGS]
    assert [line["step"] for line in read_metrics(folder / OUT.metrics)] == list(range(1, SAVES + RESUMES + 1))
