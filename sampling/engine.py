"""Which code makes the tokens: PyTorch's operations, or loops that numba compiles."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import sampler
from support.command import StopSignal, UserError, one_line, optional_package
from tiny_decoder import TinyGPT

ENGINES = ("auto", "torch", "compiled")
WEIGHTS = ("float32", "int8")
MIN_TOKENS = 1_000  # per row, from which on the loops save more than the half second that it takes to load them

# The loops compute one row after the other, PyTorch a batch at once: up to so many rows x width the loops are faster
# (docs/decoding.md). Reading int8 pays for few rows only.
MAX_NUMBERS, MAX_INT8_ROWS = 24_576, 8


def pick_engine(engine: str, weights: str, model: TinyGPT, tokens: int, rows: int) -> tuple[Callable | None, Callable]:
    """A step for `SlidingWindow`, None for the model's own, and a loop, `sampler.generate` or one like it.

    tokens: how many new tokens each of so many texts (rows) gets. The compiled loops are compared with the model first.
    Raises UserError if --engine or --weights ask for what they cannot do, on this machine or for this network.
    """
    on_cpu, installed = next(model.parameters()).is_cpu, importlib.util.find_spec("numba") is not None
    if engine == "torch" and weights == "int8":
        raise UserError("--weights int8 needs --engine compiled")
    optional = engine == "auto" and weights == "float32"
    if weights == "int8" and rows > MAX_INT8_ROWS:
        raise UserError(f"--weights int8 is slower than float32 for more than {MAX_INT8_ROWS} texts: leave it out")
    faster = tokens >= MIN_TOKENS and rows * model.config.embed_dim <= MAX_NUMBERS
    if engine == "torch" or (optional and not (installed and on_cpu and faster)):
        return None, sampler.generate
    flag = "--weights int8" if weights == "int8" else "--engine compiled"
    if not on_cpu:
        raise UserError(f"{flag} computes on the CPU: add --device cpu")
    try:
        with StopSignal() as stop:  # LLVM, which compiles, does not bear the exception of a Ctrl-C: it comes afterwards
            optional_package("numba", flag)
            if not any(Path(__file__).parent.glob("__pycache__/kernels.make_tokens-*.nbi")):  # where numba keeps it
                print("compiling the fast loops, which takes some ten seconds, once", file=sys.stderr)
            from sampling.compiled_step import CompiledStep, generate  # numba is optional, and slow to import

            step = CompiledStep(model, weights)
        if stop.signum:
            raise KeyboardInterrupt
        return step, generate
    except (RuntimeError, UserError) as error:  # DifferentNetwork; numba is broken, or has no folder to compile into
        reason = f"the compiled loops cannot be used: {one_line(error)}"
        if not optional:
            raise UserError(f"{reason}; leave {flag} out") from None
        print(f"{reason}; PyTorch makes the text", file=sys.stderr)
        return None, sampler.generate
