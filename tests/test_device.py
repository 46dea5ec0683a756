"""What this machine is made to do: memory that is kept between steps."""

import platform
import subprocess
import sys

import pytest

from conftest import ROOT, environment

COUNT = """
import resource, torch
from support.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left_alone = faults()
keep_freed_memory()
faults()
print(left_alone, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_for_the_next_step():
    """Every fault is a page that the system had taken back and filled with zeros."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=60
    )
    left_alone, kept = map(int, done.stdout.split())
    assert left_alone > 1000 and kept < left_alone / 10, done.stdout
