"""Which device to run on, and which precision is fast there."""

import ctypes
import functools
import importlib.util
import math
import os
import shutil
import sys
import timeit

import torch
from torch import Tensor

from support.command import UserError, one_line


@functools.cache
def pick_device(name: str) -> torch.device:
    """The device that `name` stands for; "auto" is the first that is there of cuda, mps and cpu, or the CPU if PyTorch
    cannot compute on that one.

    A note on stderr says if PyTorch cannot make good use of the machine. Raises UserError if it cannot compute there.
    """
    automatic = name == "auto"
    if automatic:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).add(1).item()  # a GPU too old for this PyTorch has memory, but runs no kernel
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        problem = f"--device {name}: PyTorch cannot compute there ({one_line(error)[:100]})"
        if not automatic or "RANK" in os.environ:  # of several processes, all must compute alike
            raise UserError(f"{problem}; try --device cpu") from None
        print(f"NOTE: {problem}; the CPU computes", file=sys.stderr)
        device = torch.device("cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: only cpu, cuda and mps can train or sample")
    if sys.platform == "win32" and torch.version.cuda is None and shutil.which("nvidia-smi"):
        command = "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
        print(f"NOTE: this PyTorch cannot use the NVIDIA GPU; to change that: {command}", file=sys.stderr)
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of the matrix products: `float32`, `bfloat16`, `float16`, or "auto".

    auto is bfloat16 where the hardware multiplies it clearly faster than float32 (recent GPUs; most CPUs with AMX or
    AVX512-bf16), float16 on NVIDIA GPUs that have tensor cores for nothing else (V100, T4), and float32 elsewhere.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    features = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    native = (features.get("amx_bf16") or features.get("avx512_bf16")) and bfloat16_is_faster()
    return torch.bfloat16 if native else torch.float32


@functools.cache
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 clearly faster than float32. One with the instructions need not: an Intel
    Xeon whose AMX the virtual machine hides takes twice the time."""
    return product_rate("cpu", torch.bfloat16) > 1.2 * product_rate("cpu", torch.float32)  # more than noise


def product_rate(device: torch.device | str, dtype: torch.dtype, rows: int = 4096) -> float:
    """TFLOP/s of the largest matrix product of a model of width 384 by itself, the best of five."""
    x, weight = (torch.ones(n, 384, device=device, dtype=dtype) for n in (rows, 1536))
    # item waits for a GPU
    seconds = timeit.repeat(lambda: torch.nn.functional.linear(x, weight)[0, 0].item(), number=1, repeat=5)
    return 2 * rows * 384 * 1536 / min(seconds) / 1e12


def wants_compile(choice: bool | None, device: torch.device) -> bool:
    """Whether to call torch.compile: what --compile says, else on NVIDIA GPUs if Triton and a C compiler are there."""
    if choice is not None:
        return choice
    tools = importlib.util.find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang")))
    return device.type == "cuda" and bool(tools)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next step to use again. Only glibc can; elsewhere nothing happens.

    Left alone it hands large blocks back to the system, which fills them with zeros when they are asked for again:
    15,000 pages in each step of `small`, a tenth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing is handed back


def check_memory(needed: int, device: torch.device) -> None:
    """Raise UserError if `needed` bytes are more than the device has in all, where that can be found out.

    An operating system hands out memory that it does not have, and kills the process that then uses it.
    """
    total = math.inf
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > total:
        needs = f"this needs about {needed / 2**30:,.0f} GiB of memory, and {device} has {total / 2**30:,.0f}"
        raise UserError(f"{needs}: try a smaller --batch-size, --max-seq or --embed-dim, or a larger --grad-accum")


def describe_device(device: torch.device) -> str:
    """The device in words: its name and, for a CPU, how many threads compute."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A GPU fetches it by itself, from memory that stays put, while the program goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
