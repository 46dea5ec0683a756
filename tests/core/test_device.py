"""The choice of device and precision, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from support import start
from support.command import UserError
from support.device import check_memory, pick_device, pick_dtype

CPU = torch.device("cpu")


def test_auto_is_the_best_device_that_computes():
    device = pick_device("auto")
    assert torch.ones(3, device=device).sum() == 3
    assert (device.type == "cuda") == torch.cuda.is_available()
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99", "cpu:x", ""])
def test_devices_that_cannot_train_are_refused(name):
    with pytest.raises(UserError, match="--device"):
        pick_device(name)


def test_precision_is_what_is_asked_for_or_what_the_processor_multiplies(monkeypatch):
    assert pick_dtype("float32", CPU) == torch.float32 and pick_dtype("bfloat16", CPU) == torch.bfloat16
    for features, expected in (
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=features: found, raising=False)
        assert pick_dtype("auto", CPU) == expected


def test_more_memory_than_there_is_is_refused():
    check_memory(2**20, CPU)
    with pytest.raises(UserError, match=r"GiB of memory.*--batch-size"):
        check_memory(2**60, CPU)


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_sleep_while_they_wait_unless_the_user_chose_otherwise(chosen):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    said = subprocess.run(
        [sys.executable, "-c", f"import support.start, os; print(*(os.environ.get(name) for name in {names}))"],
        cwd=ROOT,
        env={**clean, **chosen},
        capture_output=True,
        text=True,
    )
    if chosen:
        assert said.stdout == f"{' '.join(str(chosen.get(name)) for name in names)}\n", said.stderr
    else:
        assert said.stdout in ("None 2000 1\n", "PASSIVE None None\n"), said.stderr


@pytest.mark.parametrize(
    ("running", "allowed", "expected"),
    [("1", 4, False), ("2", 4, True), ("2", 3, False), ("9", 1, True), ("4", 1, False)],
)
def test_threads_sleep_at_once_where_others_leave_too_few_processors(monkeypatch, tmp_path, running, allowed, expected):
    """Of 4 processors; `running` counts ourselves."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(allowed)), raising=False)
    counts = tmp_path / "loadavg"
    counts.write_text(f"0.20 0.18 0.12 {running}/100 4711\n")
    assert start.others_compute(str(counts)) is expected


@pytest.mark.parametrize("content", [None, "", "1 2 3\n", "a b c d/e f\n"])
def test_a_system_that_tells_nothing_is_taken_as_quiet(tmp_path, content):
    counts = tmp_path / "loadavg"
    if content is not None:
        counts.write_text(content)
    assert start.others_compute(str(counts)) is False
