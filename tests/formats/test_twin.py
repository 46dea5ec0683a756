"""Exports of a changed network: a page, llama.cpp and transformers would compute another one, so they are refused."""

import math
import sys

import pytest
import torch

from corpora import fast_bpe
from formats.checkpoint import Checkpoint, model_weights, save_model
from formats.twin import deviation
from formats.write_page import save_page
from helpers import NETWORK_CHANGES, assert_one_error_line, shaken_model
from support.command import UserError
from tiny_decoder import DecoderBlock
from tokenizer import BOS, SYMBOLS, BPETokenizer, CharTokenizer, to_codepoints

TOKENIZER = CharTokenizer.from_text("abcdefghi")  # 11 tokens, as `tiny_config`
PACKAGES = {"x.html": "torch", "x.gguf": "gguf", "x/": "safetensors"}
FORWARD = DecoderBlock.forward


def wrong_cached_step(self, x, mask, cache=None):
    return FORWARD(self, x, mask, cache) * (1 if cache is None or x.size(1) > 1 else 2)


CHANGES = {**NETWORK_CHANGES, "cached step": (DecoderBlock, "forward", wrong_cached_step)}


@pytest.mark.parametrize("target", PACKAGES)
@pytest.mark.parametrize("change", [*CHANGES, None])
def test_no_export_of_a_changed_network(tmp_path, output_of, monkeypatch, change, target):
    """As a student changes the code: the model is made, saved and loaded by the changed network."""
    pytest.importorskip(PACKAGES[target])
    if change:
        monkeypatch.setattr(*CHANGES[change])
    save_model(tmp_path / "a.pth", shaken_model(max_seq=32, num_layers=2, dropout=0.5), TOKENIZER, {})
    output_of("convert.py", "a.pth", "b.pth")
    printed = output_of("convert.py", "a.pth", target, code=2 if change else 0)
    assert (tmp_path / target).exists() == (change is None)
    if change:
        assert_one_error_line(printed, "network", "was changed", ".pth")


@pytest.mark.parametrize("target", PACKAGES)
@pytest.mark.parametrize("tokenizer", [TOKENIZER, BPETokenizer([*sorted(SYMBOLS), BOS], [])], ids=["char", "bpe"])
def test_no_export_of_a_changed_tokenizer(tmp_path, output_of, monkeypatch, tokenizer, target):
    pytest.importorskip(PACKAGES[target])
    save_model(tmp_path / "a.pth", shaken_model(vocab_size=tokenizer.vocab_size), tokenizer, {})
    monkeypatch.setattr(CharTokenizer, "_look_up", lambda self, text: self._id_of[to_codepoints(text.upper())])
    monkeypatch.setattr(fast_bpe, "split_words", str.split)
    assert_one_error_line(output_of("convert.py", "a.pth", target, code=2), "tokenizer.py was changed", ".pth")


@pytest.mark.parametrize("target", ["x.gguf", "x/"])
def test_a_missing_package_is_one_line(tmp_path, output_of, monkeypatch, target):
    save_model(tmp_path / "a.pth", shaken_model(), TOKENIZER, {})
    package = PACKAGES[target]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert_one_error_line(output_of("convert.py", "a.pth", target, code=2), f"pip install {package}")


@pytest.mark.parametrize("max_seq", [1, 2, 3])
def test_the_shortest_windows(tmp_path, max_seq):
    """Fewer positions than are compared. PyTorch's random numbers go on as if nothing had been written."""
    loaded, state = Checkpoint(shaken_model(max_seq=max_seq), TOKENIZER, {}), torch.get_rng_state()
    save_page(tmp_path / "x.html", loaded, None, "float16", None)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_overflow(tmp_path, output_of):
    """In float32 there is nothing to write; what float16 cannot hold needs float32; what overflows there is told."""
    with pytest.raises(UserError, match="not finite"):
        save_page(tmp_path / "x.html", Checkpoint(shaken_model(scale=1e37), TOKENIZER, {}), None, "float16", None)
    model = shaken_model(scale=1e4)
    assert deviation(model, {name: tensor.half() for name, tensor in model_weights(model).items()}) == math.inf
    model.head.weight.data[3, 3] = 1e6
    save_model(tmp_path / "a.pth", model, TOKENIZER, {})
    errors = output_of("convert.py", "a.pth", "x.html", "--precision", "float16", code=2)
    assert_one_error_line(errors, "too large for float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
