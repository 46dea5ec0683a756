"""Which code makes the tokens: PyTorch's operations, or loops that numba compiles."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import sampler
from support.command import UserError
from tiny_decoder import TinyGPT

ENGINES = ("auto", "torch", "compiled")
WEIGHTS = ("float32", "int8")
WORTH_LOADING = 1_000  # tokens a row that make up for half a second, in which numba and what it compiled are loaded
WORTH_COMPILING = 20_000  # the same for the ten seconds of the first time


def pick_engine(engine: str, weights: str, model: TinyGPT, tokens: int) -> tuple[Callable | None, Callable]:
    """A step for `SlidingWindow`, None for the model's own, and a loop, `sampler.generate` or one like it.

    tokens: how many new tokens each text gets. Raises UserError if --engine and --weights ask for what this machine
    cannot do.
    """
    on_cpu, installed = model.position_embedding.weight.is_cpu, importlib.util.find_spec("numba") is not None
    if weights == "int8" and engine == "torch":
        raise UserError("--weights int8 needs --engine compiled")
    if engine == "compiled" or weights == "int8":
        flag = "--engine compiled" if engine == "compiled" else "--weights int8"
        if not installed:
            raise UserError(f"{flag} needs numba: pip install numba")
        if not on_cpu:
            raise UserError(f"{flag} computes on the CPU: add --device cpu")
    else:
        worth_it = tokens >= (WORTH_LOADING if compiled_before() else WORTH_COMPILING)
        if engine == "torch" or not (installed and on_cpu and worth_it):
            return None, sampler.generate
    if not compiled_before():
        print("compiling the fast loops, which takes some ten seconds, once", file=sys.stderr)
    from sampling.compiled_step import CompiledStep, generate  # only here: numba is optional, and slow to import

    return CompiledStep(model, weights), generate


def compiled_before() -> bool:
    """Whether numba has left the compiled loops beside their source, and that has not changed since."""
    source = Path(__file__).with_name("kernels.py")
    found = [path.stat().st_mtime for path in source.parent.glob("__pycache__/kernels.make_tokens-*.nbi")]
    return max(found, default=0) > source.stat().st_mtime
