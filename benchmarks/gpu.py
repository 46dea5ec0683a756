"""Everything that is worth knowing about one NVIDIA GPU, in one go."""

import torch

from benchmarks.decode import SHAPES, make
from benchmarks.nanogpt import NANOGPT_BEST
from benchmarks.tools import measure, print_table, take_turns
from recipe import preset_settings
from sampler import SlidingWindow, generate
from support.command import UserError
from support.device import product_rate
from tiny_decoder import TinyGPT

EVAL_EVERY = 50


def bench_gpu() -> None:
    """Training of `base`, compiled and not, and decoding of its network. UserError without a GPU."""
    if not torch.cuda.is_available():
        raise UserError("bench.py gpu measures an NVIDIA GPU, and PyTorch finds none here")
    name, peak = torch.cuda.get_device_name(), product_rate("cuda", torch.bfloat16, 2**19)
    base = preset_settings("base")
    # 6 operations a weight (2 forward, 4 backward), and 6 T C a layer for causal attention; no embeddings, no head
    operations = 6 * base.num_layers * base.embed_dim * (12 * base.embed_dim + base.max_seq)
    rows = []
    for flag in ("--compile", "--no-compile"):
        flags = ["--preset", "base", flag, "--device", "cuda", "--eval-every", EVAL_EVERY]
        curve = measure("gpu.jsonl", {"gpu": name, "choice": flag, "seed": 1}, flags)["curve"]
        tokens = (len(curve) - 1) * EVAL_EVERY * base.batch_size * base.max_seq / (curve[-1][0] - curve[0][0])
        reached = [f"{seconds:.1f}" for seconds, loss in curve if loss <= NANOGPT_BEST] or ["never"]
        rate = tokens * operations / 1e12
        row = [f"{min(loss for _, loss in curve):.4f}", f"{tokens:,.0f}", f"{rate:.1f} ({rate / peak:.0%})"]
        rows.append([f"base {flag}", reached[0], *row])
    print_table([name, f"seconds to {NANOGPT_BEST}", "lowest loss", "tokens/s", f"TFLOP/s (of {peak:.0f})"], rows)
    model = TinyGPT(SHAPES["6 x 384, window 256"]).eval().cuda()
    count = model.config.max_seq - 1
    tasks = {n: lambda n=n: make(SlidingWindow(model, [[5]] * n), count, generate) for n in (1, 8, 64)}
    rows = [[f"batch {n}", f"{n * count / seconds:,.0f}"] for n, seconds in take_turns(tasks, 3).items()]
    print_table(["6 x 384, window 256", "tokens/s"], rows)
