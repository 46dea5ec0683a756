"""How fast text is made, beside other libraries with the same weights."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers import gpt2_twin, save_for_ctranslate2, token_name
from benchmarks.tools import print_table, take_turns
from sampler import Sampling, SlidingWindow, generate, row_generators
from sampling.engine import WEIGHTS, pick_engine
from tiny_decoder import TinyGPT, TinyGPTConfig

SHAPES = {
    "4 x 128, window 64": TinyGPTConfig(vocab_size=67, max_seq=64, embed_dim=128, num_heads=4, num_layers=4),
    "4 x 192, window 256": TinyGPTConfig(vocab_size=67, max_seq=256, embed_dim=192, num_heads=3, num_layers=4),
    "6 x 384, window 256": TinyGPTConfig(vocab_size=67, max_seq=256, embed_dim=384, num_heads=6, num_layers=6),
}
ROUNDS = {1: 7, 8: 3, 64: 3}  # batch size -> rounds
FEW = 3  # tokens, where every single one costs a whole window
ORDINARY = Sampling(temperature=0.8)

Task = Callable[[], object]


def bench_decode() -> None:
    """Tokens per second of every shape, with one thread and with all; in the end a line per shape."""
    all_threads = torch.get_num_threads()
    summary = []
    for shape, config in SHAPES.items():
        torch.manual_seed(0)
        model = TinyGPT(config).init_weights().eval()  # the weights' values do not matter to speed
        for threads in sorted({all_threads, 1}, reverse=True):
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                print(f"\n{shape}, {threads} thread{'s' if threads > 1 else ''}: tokens/s of the whole batch\n")
                rates = compare(model, threads, Path(folder))
        torch.set_num_threads(all_threads)
        summary.append(in_words(shape, {name: batches[0] for name, batches in rates.items()}))
    print("\none text, one thread:")
    print("\n".join(summary))


def in_words(shape: str, rates: dict[str, float]) -> str:
    """One line on batch 1: ours in each precision, and what it is beside the others."""
    parts = []
    for name, peers in (
        ("cache, PyTorch", ("transformers",)),
        ("cache, compiled float32", ("transformers", "CTranslate2 float32")),
        ("cache, compiled int8", ("CTranslate2 int8",)),
    ):
        beside = [f"{rates[name] / rates[peer]:.2f} x {peer}" for peer in peers if name in rates and peer in rates]
        if name in rates:
            parts.append(f"{name.removeprefix('cache, ')} {rates[name]:,.0f} tokens/s ({', '.join(beside)})")
    return f"{shape}: {'; '.join(parts)}".replace(" ()", "")


def compare(model: TinyGPT, threads: int, folder: Path) -> dict[str, list[float]]:
    """One table: a row per way to decode, a column per batch size. Returns its figures, by way."""
    rates: dict[str, list[float]] = {}
    for batch, rounds in ROUNDS.items():
        tasks = our_tasks(model, batch) | peer_tasks(model, batch, threads, folder)
        seconds = take_turns({name: task for name, (task, _tokens) in tasks.items()}, rounds)
        for name, (_task, tokens) in tasks.items():
            rates.setdefault(name, []).append(tokens * batch / seconds[name])
    rows = [[name, *(f"{rate:,.0f}" for rate in row)] for name, row in rates.items()]
    print_table(["", *(f"batch {batch}" for batch in ROUNDS)], rows)
    return rates


def our_tasks(model: TinyGPT, batch: int) -> dict[str, tuple[Task, int]]:
    """name -> (what to time, how many tokens a row it makes)."""
    window = model.config.max_seq
    start, half, full, over = ([[5] * length] * batch for length in (1, window // 2, window, window + 1))
    engines = {"the model": (None, generate), "PyTorch": pick_engine("torch", "float32", model, batch, 0)}
    if importlib.util.find_spec("numba"):
        engines |= {f"compiled {kind}": pick_engine("compiled", kind, model, batch, 0) for kind in WEIGHTS}
    best = list(engines.values())[min(2, len(engines) - 1)]

    def decode(prompts: list[list[int]], tokens: int, stride: int | None, step, loop) -> tuple[Task, int]:
        return lambda: make(SlidingWindow(model, prompts, stride, step), tokens, loop), tokens

    return {
        "no cache, half a window": (lambda: make_uncached(model, half, FEW), FEW),
        "no cache, full window": (lambda: make_uncached(model, full, FEW), FEW),
        **{f"cache, {name}": decode(start, window - 1, None, *engine) for name, engine in engines.items()},
        "past the window, --stride 1": decode(full, FEW, 1, *best),
        "past the window, half of it at once": decode(over, window // 2, None, *best),
    }


def make(window: SlidingWindow, tokens: int, loop: Callable) -> None:
    """Sample so many tokens in every row."""
    for _ in loop(window, tokens, row_generators(0, len(window.rows)), ORDINARY):
        pass


@torch.inference_mode()
def make_uncached(model: TinyGPT, prompts: list[list[int]], tokens: int) -> None:
    """The plain loop: the whole window through the whole model for every token."""
    ids = torch.tensor(prompts)
    for _ in range(tokens):
        logits = model(ids[:, -model.config.max_seq :])[:, -1]
        chosen = torch.multinomial((logits / ORDINARY.temperature).softmax(-1), 1)
        ids = torch.cat([ids, chosen], dim=1)


def peer_tasks(model: TinyGPT, batch: int, threads: int, folder: Path) -> dict[str, tuple[Task, int]]:
    """Other libraries that are installed, sampling from a prompt of one token to the end of the window."""
    tokens = model.config.max_seq - 1
    tasks: dict[str, tuple[Task, int]] = {}
    if not importlib.util.find_spec("transformers"):
        print("transformers is not installed: skipped")
    else:
        twin, ids = gpt2_twin(model), torch.full((batch, 1), 5)
        options = {"do_sample": True, "top_k": 0, "temperature": ORDINARY.temperature, "pad_token_id": 0}
        options |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "use_cache": True}
        tasks["transformers"] = (lambda options=options: twin.generate(ids, **options), tokens)
    if not importlib.util.find_spec("ctranslate2"):
        print("ctranslate2 is not installed: skipped")
        return tasks
    import ctranslate2

    save_for_ctranslate2(model, folder)
    for kind in ("float32", "int8"):
        generator = ctranslate2.Generator(str(folder), compute_type=kind, intra_threads=threads, inter_threads=1)
        options = {"max_length": tokens, "min_length": tokens, "end_token": [], "include_prompt_in_result": False}
        options |= {"sampling_topk": 0, "sampling_temperature": ORDINARY.temperature}
        run = generator.generate_batch
        tasks[f"CTranslate2 {kind}"] = (
            lambda run=run, options=options: run([[token_name(5)]] * batch, **options),
            tokens,
        )
    return tasks
