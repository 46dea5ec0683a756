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
MIN_TOKENS = 1_000  # per row, from which on the loops save more than the half second that it takes to load them
MIN_TOKENS_UNCOMPILED = 20_000  # the same for the ten seconds of the first time


def pick_engine(engine: str, weights: str, model: TinyGPT, tokens: int) -> tuple[Callable | None, Callable]:
    """A step for `SlidingWindow`, None for the model's own, and a loop, `sampler.generate` or one like it.

    tokens: how many new tokens each text gets. The compiled loops are compared with the model first. Raises UserError
    if --engine or --weights ask for what they cannot do, on this machine or for this network.
    """
    on_cpu, installed = next(model.parameters()).is_cpu, importlib.util.find_spec("numba") is not None
    flag = "--weights int8" if weights == "int8" else f"--engine {engine}"
    if weights == "int8" and engine == "torch":
        raise UserError("--weights int8 needs --engine compiled")
    worth_it = tokens >= (MIN_TOKENS if compiled_before() else MIN_TOKENS_UNCOMPILED)
    if engine == "torch" or (flag == "--engine auto" and not (installed and on_cpu and worth_it)):
        return None, sampler.generate
    if not installed:
        raise UserError(f"{flag} needs numba: pip install numba")
    if not on_cpu:
        raise UserError(f"{flag} computes on the CPU: add --device cpu")
    if not compiled_before():
        print("compiling the fast loops, which takes some ten seconds, once", file=sys.stderr)
    from sampling.compiled_step import CompiledStep, DifferentNetwork, generate  # numba is optional, and slow to import

    try:
        return CompiledStep(model, weights), generate
    except DifferentNetwork as error:
        reason = f"the compiled loops do not compute this network: {error}"
    if flag != "--engine auto":
        raise UserError(f"{reason}; leave {flag} out")
    print(f"{reason}; PyTorch makes the text", file=sys.stderr)
    return None, sampler.generate


def compiled_before() -> bool:
    """Whether numba has stored the compiled loops beside their source, and the source has not changed since."""
    source = Path(__file__).with_name("kernels.py")
    times = [path.stat().st_mtime for path in source.parent.glob("__pycache__/kernels.make_tokens-*.nbi")]
    return max(times, default=0) > source.stat().st_mtime
