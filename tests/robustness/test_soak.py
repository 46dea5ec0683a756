"""Soak: a long run in small, with hundreds of saves and evaluations and many resumes, in flat memory and flat files."""

import contextlib
import os
import re
import time
from pathlib import Path

import pytest

from faults import OUT, SMALL_RUN, Child, announced_step, train, write_corpus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs fork, and /proc to see memory"),
]
SAVES, RESUMES = 500, 20
GROWTH = 20 * 2**20  # bytes; a leak of one training state per save would be a hundred times as much


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many files a process has open; none if it has just ended."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def test_five_hundred_saves_in_flat_memory_and_flat_files(tmp_path, capsys):
    folder = write_corpus(tmp_path)
    child = Child(folder, "main.py", *SMALL_RUN, "--steps", SAVES, "--eval-every", 1)
    memory, files, opened = {}, {}, {}
    while os.waitpid(child.pid, os.WNOHANG)[0] == 0:
        step = announced_step(child.stdout)
        if step:
            memory[step] = resident(child.pid)
            files[step] = len(list((folder / "checkpoints").iterdir()))
            opened[step] = descriptors(child.pid)
        time.sleep(0.1)
    assert announced_step(child.stdout) == SAVES, child.stderr
    # The first steps fill caches; a process that has just ended holds nothing.
    settled = [memory[step] for step in memory if step > SAVES // 10 and memory[step]]
    assert len(settled) > 20
    assert max(settled) - min(settled) < GROWTH
    assert max(files.values()) <= 6, "best, last, previous, metrics, lock, and one being written"
    opened = [opened[step] for step in opened if step > SAVES // 10 and opened[step]]
    assert max(opened) - min(opened) < 4, "a file or two is being written"
    for turn in range(1, RESUMES + 1):
        train(folder, "--resume", "--steps", SAVES + turn)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == [f"tiny_decoder.{end}" for end in ("last.pth", "lock", "metrics.jsonl", "previous.pth", "pth")]
    lines = (folder / OUT.metrics).read_text().splitlines()
    assert [int(re.search(r'"step": (\d+)', line)[1]) for line in lines] == list(range(1, SAVES + RESUMES + 1))
    with capsys.disabled():
        megabytes = [bytes_ / 2**20 for bytes_ in (min(settled), max(settled))]
        print(
            f"\nsoak: {SAVES} saves and evaluations, {RESUMES} resumes: resident {megabytes[0]:.1f} to "
            f"{megabytes[1]:.1f} MiB, {max(files.values())} files, {max(opened)} descriptors at most"
        )
