"""The same on a GPU as on the CPU: each test runs on the CPU too, so that it is known to work where there is no GPU."""

import pytest
import torch

from corpora.synthetic import synthetic_text
from helpers import SMALL_NETWORK, random_ids, read_metrics, shaken_model, written
from sampler import Sampling, SlidingWindow, generate, row_generators
from tiny_decoder import KVCache, TinyGPT

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request) -> str:
    return request.param


def models(device: str) -> tuple[TinyGPT, TinyGPT]:
    """A model on the CPU, and the same weights on the device."""
    shape = dict(vocab_size=31, max_seq=24, embed_dim=64, num_heads=4, num_layers=3, scale=0.1)
    return shaken_model(**shape), shaken_model(**shape).to(device)


@torch.inference_mode()
def test_logits_are_the_cpus_with_and_without_a_cache(device):
    ours, twin = models(device)
    ids = random_ids(3, 24, vocab_size=31)
    expected = ours(ids)
    torch.testing.assert_close(twin(ids.to(device)).cpu(), expected, atol=1e-3, rtol=1e-3)
    cache = KVCache(twin, 3)
    parts = [twin(part.to(device), cache).cpu() for part in ids.split([20, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-3, rtol=1e-3)


def test_greedy_texts_are_the_cpus_past_the_window(device):
    texts = []
    for model in models(device):
        window = SlidingWindow(model, [[3, 4, 5], [6]])  # of unequal length: padded
        texts.append(list(generate(window, 40, row_generators(0, 2), Sampling(temperature=0))))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_resumes_and_samples(device, dtype, tmp_path, output_of):
    written(tmp_path / "text.txt", synthetic_text(6000)[0])
    flags = ["--data", "text.txt", "--device", device, "--dtype", dtype, "--no-compile", *SMALL_NETWORK]
    output_of("main.py", *flags, "--steps", 60, "--eval-every", 20, "--out", "a.pth", "--stop-at", 40)
    output_of("main.py", "--resume", "--out", "a.pth", "--device", device)
    losses = [line["val_loss"] for line in read_metrics(tmp_path / "a.metrics.jsonl")]
    assert len(losses) == 3 and losses[2] < losses[0] - 0.1
    assert len(output_of("generate.py", "--checkpoint", "a.pth", "--device", device, "--seed", 1)) > 400
