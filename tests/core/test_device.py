"""The choice of device and precision, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
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


@pytest.mark.parametrize("chosen, kept", [({}, True), ({"OMP_WAIT_POLICY": "ACTIVE"}, False)])
def test_threads_sleep_while_they_wait_unless_the_user_chose_otherwise(chosen, kept):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    said = subprocess.run(
        [sys.executable, "-c", "import support.start, os; print('GOMP_SPINCOUNT' in os.environ)"],
        cwd=ROOT,
        env={**clean, **chosen},
        capture_output=True,
        text=True,
    )
    assert said.stdout == f"{kept}\n", said.stderr
