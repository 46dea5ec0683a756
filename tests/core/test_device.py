"""The choice of device and precision, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from helpers import ROOT
from support import start
from support.command import UserError
from support.device import check_memory, pick_device, pick_dtype, product_rate

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
    for features, faster, expected in (
        ({"amx_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": True}, False, torch.float32),  # a virtual Intel Xeon without AMX: twice as slow
        ({"avx2": True}, True, torch.float32),
        ({}, True, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=features: found, raising=False)
        monkeypatch.setattr("support.device.bfloat16_is_faster", lambda found=faster: found)
        assert pick_dtype("auto", CPU) == expected


def test_more_memory_than_there_is_is_refused():
    check_memory(2**20, CPU)
    with pytest.raises(UserError, match=r"GiB of memory.*--batch-size"):
        check_memory(2**60, CPU)


def settings_of_threads(processors: int, chosen: dict[str, str]) -> str:
    """OMP_WAIT_POLICY, GOMP_SPINCOUNT and KMP_BLOCKTIME as support.start leaves them on so many processors."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os; os.cpu_count = lambda: {processors}; import support.start; print(*map(os.environ.get, {names}))"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**clean, **chosen}, capture_output=True, text=True
    )
    return said.stdout.strip() or said.stderr


@pytest.mark.parametrize("processors", [0, 10**6])
def test_threads_sleep_while_they_wait(processors):
    taken = processors == 0 and sys.platform == "linux"
    assert settings_of_threads(processors, {}) == ("PASSIVE None None" if taken else "None 2000 1")


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_chose_for_threads_stays(chosen):
    expected = [chosen.get(name, "None") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")]
    assert settings_of_threads(0, chosen) == " ".join(expected)


@pytest.mark.parametrize(
    ("running", "allowed", "hyperthreads", "omp_threads", "expected"),
    [
        ("1", 4, 1, "", False),  # it counts ourselves
        ("2", 4, 1, "", True),
        ("2", 3, 1, "", False),
        ("4", 1, 1, "", False),
        ("9", 1, 1, "", True),
        ("2", 4, 2, "", False),  # PyTorch uses a thread a core, and there is room for one
        ("4", 4, 2, "", True),
        ("3", 4, 1, "2", False),
        ("4", 4, 1, "2", True),
    ],
)
def test_others_compute_where_they_leave_too_few_processors(
    monkeypatch, tmp_path, running, allowed, hyperthreads, omp_threads, expected
):
    """Of 4 processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(allowed)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", omp_threads)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text(f"0.20 0.18 0.12 {running}/100 4711\n")
    for number in range(4):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number // hyperthreads}\n")
    assert start.others_compute(str(tmp_path)) is expected


@pytest.mark.parametrize("content", [None, "", "1 2 3\n", "a b c d/e f\n"])
def test_a_system_that_tells_nothing_is_taken_as_quiet(monkeypatch, tmp_path, content):
    """Such as macOS and Windows, which lack sched_getaffinity too."""
    if content is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    (tmp_path / "proc").mkdir()
    if content is not None:
        (tmp_path / "proc/loadavg").write_text(content)
    assert start.others_compute(str(tmp_path)) is False


def test_the_rate_of_a_product_is_its_operations_over_the_shortest_time(monkeypatch):
    made = []
    monkeypatch.setattr("timeit.repeat", lambda product, number, repeat: made.append(product()) or [0.5, 0.25, 0.75])
    assert product_rate("cpu", torch.float32, rows=10) == 10 * 384 * 1536 * 2 / 0.25 / 1e12
    assert made == [384.0]  # a sum of as many ones
