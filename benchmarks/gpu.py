"""Everything that is worth knowing about one NVIDIA GPU, in one go."""

import math

import torch

from benchmarks.decode import SHAPES, make
from benchmarks.nanogpt import NANOGPT_BEST
from benchmarks.tools import lowest, print_table, seconds_per_step, take_turns, train_once
from recipe import preset_settings
from sampler import SlidingWindow, generate
from support.command import UserError
from support.device import product_rate
from tiny_decoder import TinyGPT


def bench_gpu() -> None:
    """Training of `base`, compiled and not, and decoding. UserError without a GPU."""
    if not torch.cuda.is_available():
        raise UserError("bench.py gpu measures an NVIDIA GPU, and PyTorch finds none here")
    print(f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB\n")
    print_training()
    print_decoding(TinyGPT(SHAPES["6 x 384, window 256"]).eval().cuda())


def print_training() -> None:
    """Seconds of training to nanoGPT's loss, and the speed beside that of matrix products alone."""
    peak, rows = product_rate("cuda", torch.bfloat16, rows=2**19), []
    for flag in ("--compile", "--no-compile"):
        lines = train_once("--preset", "base", flag, "--device", "cuda", "--eval-every", 50)
        tokens, rate = throughput(lines)
        reached = min((line["train_seconds"] for line in lines if line["val_loss"] <= NANOGPT_BEST), default=math.inf)
        row = [f"{reached:.1f}", f"{lowest(lines):.4f}", f"{tokens:,.0f}"]
        rows.append([f"base {flag}", *row, f"{rate:.1f} ({rate / peak:.0%})"])
    target = f"seconds to {NANOGPT_BEST}"
    print_table(["training", target, "lowest val loss", "tokens/s", f"TFLOP/s (of {peak:.0f} in products)"], rows)


def throughput(lines: list[dict]) -> tuple[float, float]:
    """Tokens/s and TFLOP/s of a run of `base`.

    6 operations a weight (2 forward, 4 backward), and 6 T C a layer for causal attention; embeddings and head left out.
    """
    settings = preset_settings("base")
    tokens = settings.batch_size * settings.max_seq / seconds_per_step(lines)
    operations = 6 * settings.num_layers * settings.embed_dim * (12 * settings.embed_dim + settings.max_seq)
    return tokens, tokens * operations / 1e12


def print_decoding(model: TinyGPT) -> None:
    """Tokens per second of the whole batch, from one token to a full window."""
    tokens = model.config.max_seq - 1
    tasks = {n: lambda n=n: make(SlidingWindow(model, [[5]] * n), tokens, generate) for n in (1, 8, 64)}
    rows = [[f"batch {n}", f"{n * tokens / seconds:,.0f}"] for n, seconds in take_turns(tasks, 3).items()]
    print_table(["6 x 384, window 256", "tokens/s"], rows)
