"""The choice of device and precision, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from helpers import ROOT, posix
from support.command import UserError
from support.device import check_memory, pick_device, pick_dtype, product_rate

CPU = torch.device("cpu")


def test_auto_is_the_best_device_that_computes():
    device = pick_device("auto")
    assert torch.ones(3, device=device).sum() == 3 and (device.type == "cuda") == torch.cuda.is_available()
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize(
    "feature, faster, expected",
    [
        ("amx_bf16", True, torch.bfloat16),
        ("avx512_bf16", True, torch.bfloat16),
        ("avx512_bf16", False, torch.float32),  # a virtual Intel Xeon without AMX: twice as slow
        ("avx2", True, torch.float32),
    ],
)
def test_precision_is_what_is_asked_for_or_what_the_processor_multiplies(monkeypatch, feature, faster, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True}, raising=False)
    monkeypatch.setattr("support.device.bfloat16_is_faster", lambda: faster)
    assert pick_dtype("auto", CPU) == expected
    assert pick_dtype("float32", CPU) == torch.float32 and pick_dtype("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize(
    "capability, native, expected",
    [((9, 0), True, torch.bfloat16), ((7, 5), False, torch.float16), ((6, 1), False, torch.float32)],  # H100, T4, P40
)
def test_a_gpu_without_bfloat16_computes_in_float16_if_it_has_units_for_that(monkeypatch, capability, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_dtype("auto", torch.device("cuda")) == expected


def test_a_gpu_that_pytorch_cannot_use_is_named(monkeypatch, capsys):
    """Not measured on such machines: an old Mac's PyTorch, Windows with PyPI's wheel, a card that runs no kernel."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch.version, "cuda", None)
    pick = pick_device.__wrapped__  # what an earlier test was told is not remembered
    pick("cpu")
    assert "whl/cu" in capsys.readouterr().err
    monkeypatch.setattr(torch.Tensor, "add", lambda *_: torch.empty(1, device="cuda:99"))
    with pytest.raises(UserError, match="--device cpu: PyTorch cannot compute there"):
        pick("cpu")
    assert pick("auto") == CPU and "the CPU computes" in capsys.readouterr().err


@posix
def test_more_memory_than_there_is_is_refused():
    check_memory(2**20, CPU)
    with pytest.raises(UserError, match=r"GiB of memory.*--batch-size"):
        check_memory(2**60, CPU)


@pytest.mark.parametrize(
    "processors, chosen, expected",
    [
        (0, {}, "PASSIVE None None" if sys.platform == "linux" else "None 2000 1"),  # all processors are taken
        (10**6, {}, "None 2000 1"),
        (0, {"GOMP_SPINCOUNT": "7"}, "None 7 None"),  # what the user chose stays
    ],
)
def test_threads_sleep_while_they_wait(processors, chosen, expected):
    """As support.start leaves the settings of OpenMP on so many processors."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    variables = {name: value for name, value in os.environ.items() if name not in names} | chosen
    code = f"import os; os.cpu_count = lambda: {processors}; import support.start; print(*map(os.environ.get, {names}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


def test_the_rate_of_a_product_is_its_operations_over_the_shortest_time(monkeypatch):
    made = []
    monkeypatch.setattr("timeit.repeat", lambda product, number, repeat: made.append(product()) or [0.5, 0.25, 0.75])
    assert product_rate("cpu", torch.float32, rows=10) == 10 * 384 * 1536 * 2 / 0.25 / 1e12
    assert made == [384.0]  # a sum of as many ones
