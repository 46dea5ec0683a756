"""How fast text is made, beside other libraries with the same weights."""

import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers import gpt2_twin, save_for_ctranslate2, token_name
from benchmarks.tools import print_table, take_turns
from sampler import TEMPERATURE, Sampling, SlidingWindow, generate, row_generators
from sampling.engine import WEIGHTS, pick_engine
from tiny_decoder import TinyGPT, TinyGPTConfig

SHAPES = {
    "4 x 128, window 64": TinyGPTConfig(vocab_size=67, max_seq=64, embed_dim=128, num_heads=4, num_layers=4),
    "4 x 192, window 256": TinyGPTConfig(vocab_size=67, max_seq=256, embed_dim=192, num_heads=3, num_layers=4),
    "6 x 384, window 256": TinyGPTConfig(vocab_size=67, max_seq=256, embed_dim=384, num_heads=6, num_layers=6),
}
ROUNDS = {1: 7, 8: 3, 64: 3}  # batch size -> rounds

Task = Callable[[], object]


def bench_decode() -> None:
    """Tokens per second of every shape, with all threads, and with one beside the libraries that are installed."""
    all_threads = torch.get_num_threads()
    for shape, config in SHAPES.items():
        torch.manual_seed(0)
        model = TinyGPT(config).eval()  # the weights' values do not matter to speed
        for threads in sorted({all_threads, 1}, reverse=True):
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                print(f"{shape}, {threads} thread{'s' if threads > 1 else ''}: tokens/s of the whole batch\n")
                compare(model, threads, Path(folder))


def compare(model: TinyGPT, threads: int, folder: Path) -> None:
    """One table: a row per way to decode, a column per batch size."""
    rows: dict[str, list[str]] = {}
    for batch, rounds in ROUNDS.items():
        tasks = our_tasks(model, batch)
        if threads == 1:  # with more, the threads of several libraries in one process hinder each other
            tasks |= peer_tasks(model, batch, folder)
        seconds = take_turns({name: task for name, (task, _tokens) in tasks.items()}, rounds)
        for name, (_task, tokens) in tasks.items():
            rows.setdefault(name, [name]).append(f"{tokens * batch / seconds[name]:,.0f}")
    print_table(["", *(f"batch {batch}" for batch in ROUNDS)], list(rows.values()))


def our_tasks(model: TinyGPT, batch: int) -> dict[str, tuple[Task, int]]:
    """name -> (what to time, how many tokens a row it makes)."""
    window = model.config.max_seq
    engines = {"PyTorch": (None, generate)}
    if importlib.util.find_spec("numba"):
        engines |= {f"compiled {kind}": pick_engine("compiled", kind, model, 0, 1) for kind in WEIGHTS}
    best = engines.get("compiled float32", engines["PyTorch"])

    def decode(length: int, tokens: int, stride: int | None, step, loop) -> tuple[Task, int]:
        return lambda: make(SlidingWindow(model, [[5] * length] * batch, stride, step), tokens, loop), tokens

    return {
        **{f"cache, {name}": decode(1, window - 1, None, *engine) for name, engine in engines.items()},
        "past the window, --stride 1": decode(window, 3, 1, *best),  # each token costs a whole window
        "past the window, half of it at once": decode(window + 1, window // 2, None, *best),
    }


def make(window: SlidingWindow, tokens: int, loop: Callable) -> None:
    """Sample so many tokens in every row."""
    list(loop(window, tokens, row_generators(0, len(window.rows)), Sampling(TEMPERATURE)))


def peer_tasks(model: TinyGPT, batch: int, folder: Path) -> dict[str, tuple[Task, int]]:
    """Other libraries that are installed, with one thread, from a prompt of one token to the end of the window."""
    tokens, temperature = model.config.max_seq - 1, TEMPERATURE
    tasks: dict[str, tuple[Task, int]] = {}
    if importlib.util.find_spec("transformers"):
        ids = torch.full((batch, 1), 5)
        options = {"do_sample": True, "top_k": 0, "temperature": temperature, "pad_token_id": 0}
        options |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "use_cache": True}
        tasks["transformers"] = (partial(gpt2_twin(model).generate, ids, **options), tokens)
    if importlib.util.find_spec("ctranslate2"):
        import ctranslate2

        save_for_ctranslate2(model, folder)
        options = {"max_length": tokens, "min_length": tokens, "end_token": [], "include_prompt_in_result": False}
        options |= {"sampling_topk": 0, "sampling_temperature": temperature}
        for kind in WEIGHTS:
            generator = ctranslate2.Generator(str(folder), compute_type=kind, intra_threads=1, inter_threads=1)
            task = partial(generator.generate_batch, [[token_name(5)]] * batch, **options)
            tasks[f"CTranslate2 {kind}"] = (task, tokens)
    return tasks
