"""How fast text is made, beside other libraries with the same weights, and what the faster ways cost in quality."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from sampling.decode import WEIGHTS, FastStep, Reader
from torch.nn.functional import cross_entropy

from benchmarks.peers import gpt2_twin, save_for_ctranslate2
from benchmarks.tools import print_table, seconds_of, take_turns
from data_setup import load_corpus
from formats.checkpoint import load_checkpoint
from sampler import Sampling, generate, row_generators
from tiny_decoder import TinyGPT, TinyGPTConfig

SHAPES = {
    "4 x 128, window 64": TinyGPTConfig(vocab_size=67, max_seq=64, embed_dim=128, num_heads=4, num_layers=4),
    "6 x 384, window 256": TinyGPTConfig(vocab_size=67, max_seq=256, embed_dim=384, num_heads=6, num_layers=6),
}
BATCHES = (1, 8, 64)
ROUNDS = {1: 7, 8: 3, 64: 3}
FEW = 3  # tokens, where every single one costs a whole window
ORDINARY = Sampling(temperature=0.8)

Task = Callable[[], object]


# --- Speed -------------------------------------------------------------------------------------------------------


def bench_decode() -> None:
    """Tokens per second at both shapes, with one thread and with all."""
    all_threads = torch.get_num_threads()
    for shape, config in SHAPES.items():
        torch.manual_seed(0)
        model = TinyGPT(config).eval()  # the weights' values do not matter to speed
        for threads in sorted({1, all_threads}):
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                print(f"\n{shape}, {threads} thread{'s' if threads > 1 else ''}: tokens/s of the whole batch\n")
                compare(model, threads, Path(folder))


def compare(model: TinyGPT, threads: int, folder: Path) -> None:
    """One table: a row per way to decode, a column per batch size, and what batch 1 is in relation to others."""
    rates: dict[str, list[float]] = {}
    for batch in BATCHES:
        tasks = our_tasks(model, batch) | peer_tasks(model, batch, threads, folder)
        seconds = take_turns({name: task for name, (task, _tokens) in tasks.items()}, ROUNDS[batch])
        for name, (_task, tokens) in tasks.items():
            rates.setdefault(name, []).append(tokens * batch / seconds[name])
    header = ["", *(f"batch {batch}" for batch in BATCHES)]
    peers = [name for name in rates if name.startswith(("transformers", "CTranslate2"))]
    rows = [
        [name, *(f"{rate:,.0f}" for rate in row), *(f"{row[0] / rates[peer][0]:.2f} x" for peer in peers)]
        for name, row in rates.items()
    ]
    print_table([*header, *(f"batch 1 / {peer}" for peer in peers)], rows)
    print_bandwidth(model, rates)


def our_tasks(model: TinyGPT, batch: int) -> dict[str, tuple[Task, int]]:
    """name -> (what to time, how many tokens a row it makes)."""
    window = model.config.max_seq
    start, half, full = ([[5] * length] * batch for length in (1, window // 2, window))

    exact, rounded = FastStep(model), FastStep(model, "int8")  # like the peers' loading, not part of the time

    def decode(prompts: list[list[int]], tokens: int, hop: int = 1, step: FastStep = exact) -> tuple[Task, int]:
        return lambda: make(Reader(model, prompts, hop, step), tokens), tokens

    return {
        "no cache, half a window": (lambda: make_uncached(model, half, FEW), FEW),
        "no cache, full window": (lambda: make_uncached(model, full, FEW), FEW),
        "cache": decode(start, window - 1),
        "cache, int8 weights": decode(start, window - 1, step=rounded),
        "past the window, exact": decode(full, FEW),
        f"past the window, --hop {window // 2}": decode([[5] * (window + 1)] * batch, window // 2, hop=window // 2),
    }


def make(reader: Reader, tokens: int) -> None:
    """Sample so many tokens in every row."""
    for _ in generate(reader, tokens, row_generators(0, len(reader.rows)), ORDINARY):
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
        tasks[f"CTranslate2 {kind}"] = (lambda run=run, options=options: run([["t5"]] * batch, **options), tokens)
    return tasks


def print_bandwidth(model: TinyGPT, rates: dict[str, list[float]]) -> None:
    """How near batch 1 comes to reading the weights once a token, from wherever so many bytes lie: cache or memory."""
    matrices = sum(p.numel() for p in model.blocks.parameters()) + model.head.weight.numel()
    for name, width in (("cache", 4), ("cache, int8 weights", 1)):
        size = matrices * width
        data = torch.ones(size // 4)
        data.sum()
        seconds = min(seconds_of(data.sum) for _ in range(50))
        share = seconds * rates[name][0]
        print(f"{name}: {size / 1e6:.1f} MB a token, read at {size / seconds / 1e9:.0f} GB/s: {share:.0%} of the limit")


# --- Quality -----------------------------------------------------------------------------------------------------


def bench_decode_loss(checkpoint: str = "checkpoints/tiny_decoder.pth", rows: int = 32) -> None:
    """Nats per token on tinyshakespeare's validation split, as the decoder predicts it: int8 weights and hops."""
    loaded = load_checkpoint(Path(checkpoint))
    model, window = loaded.model, loaded.model.config.max_seq
    tokens = loaded.tokenizer.encode(load_corpus("tinyshakespeare").val.text())
    texts = [tokens[i * (len(tokens) // rows) :][: 2 * window] for i in range(rows)]
    inside = {name: text_loss(model, texts, 1, window, step=FastStep(model, name)) for name in WEIGHTS}
    past = {hop: text_loss(model, texts, window, 2 * window, hop=hop) for hop in {1, window // 4, window // 2, window}}
    lines = [[f"within the window, {name}", loss, loss - inside["float32"]] for name, loss in inside.items()]
    lines += [[f"past the window, --hop {hop}", loss, loss - past[1]] for hop, loss in sorted(past.items())]
    print(f"{checkpoint}, {rows} texts, a window of {window} tokens\n")
    print_table(
        ["decoder", "nats per token", "difference"], [[name, f"{loss:.4f}", f"{d:+.4f}"] for name, loss, d in lines]
    )


def text_loss(model: TinyGPT, texts: list[list[int]], start: int, end: int, **options) -> float:
    """Mean negative log-likelihood in nats of every text's tokens start … end - 1, each fed after its prediction."""
    reader = Reader(model, [text[:start] for text in texts], **options)
    total = 0.0
    for position in range(start, end):
        truth = [text[position] for text in texts]
        total += cross_entropy(reader.next_logits(), torch.tensor(truth)).item()
        reader.append(truth)
    return total / (end - start)
