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
    loaded = load_model(Path(usual_path()))
    model, window = loaded.model, loaded.model.config.max_seq
    tokens = loaded.tokenizer.encode(load_corpus("tinyshakespeare").val.text())
    texts = [tokens[i * (len(tokens) // rows) :][: 2 * window] for i in range(rows)]
    lines = []
    if importlib.util.find_spec("numba"):
        for kind in WEIGHTS:
            loss = text_loss(model, texts, 1, window, step=pick_engine("compiled", kind, model, 0)[0])
            lines.append([f"within the window, {kind}", f"{loss:.4f}"])
    for stride in sorted({1, window // 4, window // 2, window}):
        loss = text_loss(model, texts, window, 2 * window, stride=stride)
        lines.append([f"past the window, --stride {stride}", f"{loss:.4f}"])
    print_table([f"{rows} texts, a window of {window} tokens", "nats per token"], lines)


def text_loss(model: TinyGPT, texts: list[list[int]], start: int, end: int, **options) -> float:
    """Mean negative log-likelihood in nats of every text's tokens start … end - 1, each fed after its prediction."""
    window = SlidingWindow(model, [text[:start] for text in texts], **options)
    total = 0.0
    for position in range(start, end):
        truth = [text[position] for text in texts]
        total += cross_entropy(window.next_logits(), torch.tensor(truth)).item()
        window.append(truth)
    return total / (end - start)
