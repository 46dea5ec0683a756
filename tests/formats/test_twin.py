"""Exports of a changed network: a page, llama.cpp and transformers would compute another one, so they are refused."""

import math
import sys

import pytest
import torch

import tiny_decoder
from formats.checkpoint import Checkpoint, model_weights, save_model
from formats.twin import deviation
from formats.write_page import save_page
from helpers import assert_one_error_line, shaken_model
from support.command import UserError
from tiny_decoder import MLP, CausalSelfAttention, DecoderBlock, TinyGPT
from tokenizer import CharTokenizer

TOKENIZER = CharTokenizer.from_text("abcdefghi")  # 11 tokens, as `tiny_config`
PACKAGES = {"x.html": "torch", "x.gguf": "gguf", "x/": "safetensors"}
FORWARD, PROJECT, INIT = DecoderBlock.forward, CausalSelfAttention.project, TinyGPT.__init__


def unscaled(self, x):
    """Attention without 1 / sqrt(hs): queries twice as long, because hs is 4."""
    return PROJECT(self, x) * torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1, 1, 1)


def window_of_16(size):
    visible = torch.ones(size, size).tril().triu(-15)
    return torch.where(visible > 0, 0.0, -torch.inf)


def post_norm(self, x, mask, cache=None):
    x = self.attention_norm(x + self.attention(x, mask, cache))
    return self.mlp_norm(x + self.mlp(x))


def without_positions(self, config, init="normal"):
    INIT(self, config, init)
    self.position_embedding.register_forward_hook(lambda module, ids, vectors: 0 * vectors)


def narrow(self, config):
    """A hidden layer twice as wide as the stream, not four times."""
    torch.nn.Module.__init__(self)
    self.gelu, wide = torch.nn.GELU(), 2 * config.embed_dim
    self.up, self.down = torch.nn.Linear(config.embed_dim, wide), torch.nn.Linear(wide, config.embed_dim)


def wrong_cached_step(self, x, mask, cache=None):
    return FORWARD(self, x, mask, cache) * (1 if cache is None or x.size(1) > 1 else 2)


CHANGES = {
    "ReLU": (MLP, "forward", lambda self, x: self.down(self.up(x).relu())),
    "scale": (CausalSelfAttention, "project", unscaled),
    "window of 16": (tiny_decoder, "causal_mask", window_of_16),
    "no mask": (tiny_decoder, "causal_mask", lambda size: torch.zeros(size, size)),
    "post-norm": (DecoderBlock, "forward", post_norm),
    "no positions": (TinyGPT, "__init__", without_positions),
    "narrow MLP": (MLP, "__init__", narrow),
    "cached step": (DecoderBlock, "forward", wrong_cached_step),
}


@pytest.mark.parametrize("target", PACKAGES)
@pytest.mark.parametrize("change", [*CHANGES, None])
def test_no_export_of_a_changed_network(tmp_path, in_process, monkeypatch, change, target):
    """As a student changes the code: the model is made, saved and loaded by the changed network."""
    pytest.importorskip(PACKAGES[target])
    if change:
        monkeypatch.setattr(*CHANGES[change])
    save_model(tmp_path / "a.pth", shaken_model(max_seq=32, num_layers=2, dropout=0.5), TOKENIZER, {})
    assert in_process("convert.py", "a.pth", "b.pth")[0] == 0
    code, _, errors = in_process("convert.py", "a.pth", target)
    assert (tmp_path / target).exists() == (change is None)
    if change:
        assert code == 2
        assert_one_error_line(errors, "network", "was changed", ".pth")
    else:
        assert code == 0, errors


@pytest.mark.parametrize("target", ["x.gguf", "x/"])
def test_a_missing_package_is_one_line(tmp_path, in_process, monkeypatch, target):
    save_model(tmp_path / "a.pth", shaken_model(), TOKENIZER, {})
    package = PACKAGES[target]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, output, errors = in_process("convert.py", "a.pth", target)
    assert (code, output) == (2, "")
    assert_one_error_line(errors, f"pip install {package}")


@pytest.mark.parametrize("max_seq", [1, 2, 3])
def test_the_shortest_windows(tmp_path, max_seq):
    """Fewer positions than are compared. PyTorch's random numbers go on as if nothing had been written."""
    loaded, state = Checkpoint(shaken_model(max_seq=max_seq), TOKENIZER, {}), torch.get_rng_state()
    save_page(tmp_path / "x.html", loaded, None, "float16")
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_overflow(tmp_path, in_process):
    """In float32 there is nothing to write; what float16 cannot hold needs float32; what overflows there is told."""
    with pytest.raises(UserError, match="not finite"):
        save_page(tmp_path / "x.html", Checkpoint(shaken_model(scale=1e37), TOKENIZER, {}), None, "float16")
    model = shaken_model(scale=1e4)
    assert deviation(model, {name: tensor.half() for name, tensor in model_weights(model).items()}) == math.inf
    model.head.weight.data[3, 3] = 1e6
    save_model(tmp_path / "a.pth", model, TOKENIZER, {})
    code, _, errors = in_process("convert.py", "a.pth", "x.html")
    assert code == 2
    assert_one_error_line(errors, "too large for float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
