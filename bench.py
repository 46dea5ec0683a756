"""Benchmarks: each prints a table of figures measured here and now. Compare figures of one run, not of two machines.

A machine's speed changes from minute to minute, so most figures are medians of rounds in which the contestants take
turns.
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

from benchmarks.ablate import bench_ablate
from benchmarks.decode import bench_decode
from benchmarks.frontier import bench_frontier
from benchmarks.gpu import bench_gpu
from benchmarks.plots import bench_plots
from benchmarks.texts import bench_lora, bench_texts
from benchmarks.tools import machine
from support.command import Parser, one_of, run

# name -> what runs, what it measures, how long it takes on two cores
BENCHMARKS = {
    "ablate": (bench_ablate, "what each choice of the preset tiny does to the loss, resumable", "10 minutes"),
    "decode": (bench_decode, "tokens/s of sampling, beside transformers and CTranslate2", "10 minutes"),
    "frontier": (bench_frontier, "the lowest loss for every amount of time, resumable", "2 hours"),
    "gpu": (bench_gpu, "an NVIDIA GPU: training, decoding (its tests: pytest -m gpu)", "not measured"),
    "texts": (bench_texts, "texts of your own: what the defaults lose to a tuned run, resumable", "11 hours"),
    "lora": (bench_lora, "texts of your own: fine-tuning beside training from nothing, resumable", "20 minutes"),
    "plots": (bench_plots, "no measuring: draws the pictures of README and docs", "seconds"),
}


def main() -> None:
    """Run one benchmark by name."""
    lines = [f"  {name:<13} {what} ({length})" for name, (_task, what, length) in BENCHMARKS.items()]
    parser = Parser(__doc__ + "\nbenchmarks, and how long each takes on two CPU cores:\n" + "\n".join(lines))
    parser.add_argument("name", type=one_of(*BENCHMARKS), metavar="name", help="which benchmark")
    name = parser.parse_args().name
    print(f"bench.py {name}: {machine()}")
    BENCHMARKS[name][0]()


if __name__ == "__main__":
    run(main)
