"""What the faster ways to decode cost in quality: nats per token as the decoder predicts them."""

import importlib.util
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.tools import print_table
from data_setup import load_corpus
from formats.checkpoint import load_model, usual_path
from sampler import SlidingWindow
from sampling.engine import WEIGHTS, pick_engine
from tiny_decoder import TinyGPT


def bench_decode_loss(rows: int = 32) -> None:
    """The usual checkpoint on tinyshakespeare's validation split, with --weights int8, and with every --stride."""
    checkpoint = usual_path()
    loaded = load_model(Path(checkpoint))
    model, window = loaded.model, loaded.model.config.max_seq
    tokens = loaded.tokenizer.encode(load_corpus("tinyshakespeare").val.text())
    texts = [tokens[i * (len(tokens) // rows) :][: 2 * window] for i in range(rows)]
    groups = []  # of decoders whose losses compare, the exact one first
    if importlib.util.find_spec("numba"):
        steps = {f"within the window, {kind}": pick_engine("compiled", kind, model, 0)[0] for kind in WEIGHTS}
        groups.append({name: text_loss(model, texts, 1, window, step=step) for name, step in steps.items()})
    strides = {f"past the window, --stride {n}": n for n in sorted({1, window // 4, window // 2, window})}
    groups.append({name: text_loss(model, texts, window, 2 * window, stride=n) for name, n in strides.items()})
    print(f"{checkpoint}, {rows} texts, a window of {window} tokens\n")
    lines = []
    for losses in groups:
        exact = next(iter(losses.values()))
        lines += [[name, f"{loss:.4f}", f"{loss - exact:+.4f}"] for name, loss in losses.items()]
    print_table(["decoder", "nats per token", "difference"], lines)


def text_loss(model: TinyGPT, texts: list[list[int]], start: int, end: int, **options) -> float:
    """Mean negative log-likelihood in nats of every text's tokens start … end - 1, each fed after its prediction."""
    window = SlidingWindow(model, [text[:start] for text in texts], **options)
    total = 0.0
    for position in range(start, end):
        truth = [text[position] for text in texts]
        total += cross_entropy(window.next_logits(), torch.tensor(truth)).item()
        window.append(truth)
    return total / (end - start)
