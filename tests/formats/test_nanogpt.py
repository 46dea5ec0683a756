"""nanoGPT's checkpoints: a network of that shape, written here from its description, gives the same logits."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from corpora.tokenizer_files import bpe_to_json
from formats.checkpoint import load_model
from formats.nanogpt import load_nanogpt
from helpers import assert_one_error_line
from support.command import UserError
from tokenizer import BPETokenizer

TEXT = "To be, or not to be:\nthat is the question. Zzz\n" * 3


class Norm(nn.Module):
    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.bias = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal self-attention with a packed projection, written with an explicit loop over the heads."""

    def __init__(self, width: int, heads: int, window: int, bias: bool):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)
        self.heads = heads
        self.register_buffer("bias", torch.ones(window, window).tril()[None, None])  # the mask, as old versions save it

    def forward(self, x):
        out, hidden = [], self.bias[0, 0, : x.size(1), : x.size(1)] == 0
        for q, k, v in zip(*(part.chunk(self.heads, 2) for part in self.c_attn(x).chunk(3, 2)), strict=True):
            scores = (q @ k.transpose(1, 2) / math.sqrt(q.size(2))).masked_fill(hidden, -math.inf)
            out.append(scores.softmax(-1) @ v)
        return self.c_proj(torch.cat(out, dim=2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int, bias: bool):
        super().__init__()
        self.ln_1, self.ln_2 = Norm(width, bias), Norm(width, bias)
        self.attn = Attention(width, heads, window, bias)
        up, down = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)
        self.mlp = nn.ModuleDict({"c_fc": up, "c_proj": down})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


@dataclass
class Shape:
    n_layer: int = 2
    n_head: int = 3
    n_embd: int = 24
    block_size: int = 16
    bias: bool = False
    vocab_size: int = 0
    dropout: float = 0.2


class NanoGPT(nn.Module):
    """Token and position embeddings, blocks, a last norm, and a head that is the token embedding."""

    def __init__(self, shape: Shape):
        super().__init__()
        width = shape.n_embd
        blocks = [Block(width, shape.n_head, shape.block_size, shape.bias) for _ in range(shape.n_layer)]
        parts = {"wte": nn.Embedding(shape.vocab_size, width), "wpe": nn.Embedding(shape.block_size, width)}
        self.transformer = nn.ModuleDict({**parts, "h": nn.ModuleList(blocks), "ln_f": Norm(width, shape.bias)})
        self.lm_head = nn.Linear(width, shape.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.size(1)))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def write_nanogpt(path, prefix="", **changes) -> NanoGPT:
    """A checkpoint as nanoGPT's train.py writes it, with an optimizer's state and its settings."""
    torch.manual_seed(0)
    shape = Shape(**changes)
    model = NanoGPT(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    state = model.state_dict()  # an OrderedDict with an attribute of its own
    for name in list(state):
        state[prefix + name] = state.pop(name)
    content = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": vars(shape),
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.4697),
        "config": {"dataset": "shakespeare_char", "compile": True, "learning_rate": 1e-3},
    }
    torch.save(content, path)
    return model.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_characters_have_the_same_logits(tmp_path, in_process, bias, prefix):
    characters = sorted(set(TEXT))
    number = {character: i for i, character in enumerate(characters)}  # nanoGPT's own ids
    theirs = write_nanogpt(tmp_path / "ckpt.pt", prefix, bias=bias, vocab_size=len(characters))
    (tmp_path / "input.txt").write_text(TEXT)
    code, _, errors = in_process("convert.py", "ckpt.pt", "nano.pth", "--data", "input.txt")
    assert code == 0, errors
    loaded = load_model(tmp_path / "nano.pth")
    ours = loaded.model.eval()(torch.tensor([loaded.tokenizer.encode(TEXT[:16])]))
    expected = theirs(torch.tensor([[number[character] for character in TEXT[:16]]]))
    torch.testing.assert_close(ours[..., 2:], expected)
    rarest = number[","]
    torch.testing.assert_close(ours[..., :2], expected[..., [rarest, rarest]])
    assert loaded.origin == {"converted_from": "ckpt.pt"} and loaded.model.config.dropout == 0.2


def test_bpe_loses_the_padding_of_its_vocabulary(tmp_path):
    tokenizer = BPETokenizer.train([TEXT], 270)
    (tmp_path / "tokenizer.json").write_text(bpe_to_json(tokenizer), encoding="utf-8")
    theirs = write_nanogpt(tmp_path / "ckpt.pt", vocab_size=tokenizer.vocab_size + 5)
    loaded = load_nanogpt(tmp_path / "ckpt.pt", None, tmp_path / "tokenizer.json")
    ids = torch.tensor([tokenizer.encode(TEXT)[:16]])
    torch.testing.assert_close(loaded.model.eval()(ids), theirs(ids)[..., : tokenizer.vocab_size])


@pytest.mark.parametrize("text, words", [("abc\n", "43"), ("", "empty"), (None, "no such file")])
def test_another_text_is_refused(tmp_path, text, words):
    write_nanogpt(tmp_path / "ckpt.pt", vocab_size=43)
    if text is not None:
        (tmp_path / "input.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        load_nanogpt(tmp_path / "ckpt.pt", tmp_path / "input.txt", None)


STATE = NanoGPT(Shape(vocab_size=len(set(TEXT)))).state_dict()
ARGS = vars(Shape(vocab_size=len(set(TEXT))))
WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"
HOSTILE = {
    "other types": {"model": STATE, "model_args": ARGS, "config": bytearray(9)},
    "no model": {"model_args": ARGS},
    "no shape": {"model": STATE},
    "huge": {"model": STATE, "model_args": {**ARGS, "n_embd": 10**9}},
    "deep": {"model": STATE, "model_args": {**ARGS, "n_layer": 10**6}},
    "a list for a dropout": {"model": STATE, "model_args": {**ARGS, "dropout": [0.1]}},
    "no tensors": {"model": {}, "model_args": ARGS},
    "a list for a tensor": {"model": {WTE: [1, 2]}, "model_args": ARGS},
    "an expanded tensor": {"model": {**STATE, WTE: torch.zeros(1).expand(30, 2**40)}, "model_args": ARGS},
    "a NaN": {"model": {**STATE, WPE: torch.full((16, 24), math.nan)}, "model_args": ARGS},
    "a number for a matrix": {"model": {**STATE, WTE: torch.tensor(1.0)}, "model_args": ARGS},
    "a list": [STATE],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_fit_is_one_line(tmp_path, in_process, name):
    torch.save(HOSTILE[name], tmp_path / "ckpt.pt")
    (tmp_path / "input.txt").write_text(TEXT)
    code, output, errors = in_process("convert.py", "ckpt.pt", "nano.pth", "--data", "input.txt")
    assert code == 2 and not output and not (tmp_path / "nano.pth").exists()
    assert_one_error_line(errors, "ckpt.pt")


def test_a_missing_vocabulary_is_named(tmp_path, in_process):
    write_nanogpt(tmp_path / "ckpt.pt", vocab_size=len(set(TEXT)))
    code, _, errors = in_process("convert.py", "ckpt.pt", "nano.pth")
    assert code == 2
    assert_one_error_line(errors, "--data", "--tokenizer")
