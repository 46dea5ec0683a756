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


class Attention(nn.Module):
    """Causal self-attention with a packed projection, written with explicit loops over the heads."""

    def __init__(self, width: int, heads: int, window: int, bias: bool):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)
        self.heads = heads
        self.register_buffer("bias", torch.ones(window, window).tril()[None, None])  # the mask, as old versions save it

    def forward(self, x):
        size, out = x.size(2) // self.heads, []
        queries, keys, values = self.c_attn(x).split(x.size(2), dim=2)
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            scores = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(self.bias[0, 0, : x.size(1), : x.size(1)] == 0, -math.inf)
            out.append(scores.softmax(-1) @ values[..., part])
        return self.c_proj(torch.cat(out, dim=2))


class Norm(nn.Module):
    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.bias = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int, bias: bool):
        super().__init__()
        self.ln_1, self.ln_2 = Norm(width, bias), Norm(width, bias)
        self.attn = Attention(width, heads, window, bias)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias), "c_proj": nn.Linear(4 * width, width, bias)}
        )

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
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(shape.vocab_size, width),
                "wpe": nn.Embedding(shape.block_size, width),
                "h": nn.ModuleList(
                    Block(width, shape.n_head, shape.block_size, shape.bias) for _ in range(shape.n_layer)
                ),
                "ln_f": Norm(width, shape.bias),
            }
        )
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
    content = {
        "model": type(model.state_dict())((prefix + name, tensor) for name, tensor in model.state_dict().items()),
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
    assert loaded.origin == {
        "converted_from": "ckpt.pt",
        "corpus": "shakespeare_char",
        "step": 2000,
        "val_loss": pytest.approx(1.4697),
    }
    assert loaded.model.config.dropout == 0.2


def test_bpe_loses_the_padding_of_its_vocabulary(tmp_path):
    tokenizer = BPETokenizer.train([TEXT], 270)
    (tmp_path / "tokenizer.json").write_text(bpe_to_json(tokenizer), encoding="utf-8")
    theirs = write_nanogpt(tmp_path / "ckpt.pt", vocab_size=tokenizer.vocab_size + 5)
    loaded = load_nanogpt(tmp_path / "ckpt.pt", None, tmp_path / "tokenizer.json")
    ids = torch.tensor([tokenizer.encode(TEXT)[:16]])
    torch.testing.assert_close(loaded.model.eval()(ids), theirs(ids)[..., : tokenizer.vocab_size])


@pytest.mark.parametrize("loss", [float("nan"), torch.tensor(float("inf"))])
def test_a_loss_that_is_not_finite_is_left_out(tmp_path, in_process, loss):
    """The header of our files is JSON, which has no such number: convert.py ended with a traceback."""
    write_nanogpt(tmp_path / "ckpt.pt", vocab_size=len(set(TEXT)))
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    torch.save({**content, "best_val_loss": loss}, tmp_path / "ckpt.pt")
    (tmp_path / "input.txt").write_text(TEXT)
    code, _, errors = in_process("convert.py", "ckpt.pt", "nano.pth", "--data", "input.txt")
    assert code == 0, errors
    assert "val_loss" not in load_model(tmp_path / "nano.pth").origin


@pytest.mark.parametrize("text, words", [("abc\n", "43"), ("", "empty"), (None, "no such file")])
def test_another_text_is_refused(tmp_path, text, words):
    write_nanogpt(tmp_path / "ckpt.pt", vocab_size=43)
    if text is not None:
        (tmp_path / "input.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        load_nanogpt(tmp_path / "ckpt.pt", tmp_path / "input.txt", None)


class Evil:
    def __reduce__(self):
        return (print, ("this must not be executed",))


def hostile_contents():
    """What a damaged or hostile ckpt.pt may hold."""
    shape = vars(Shape(vocab_size=len(set(TEXT))))
    state = NanoGPT(Shape(**shape)).state_dict()
    claim = torch.zeros(1).expand(len(set(TEXT)), 24)
    yield "evil", {"model": state, "model_args": shape, "config": Evil()}
    yield "bytearray", {"model": state, "model_args": shape, "config": bytearray(9)}
    yield "no model", {"model_args": shape}
    yield "no shape", {"model": state}
    yield "huge", {"model": state, "model_args": {**shape, "n_embd": 10**9}}
    yield "deep", {"model": state, "model_args": {**shape, "n_layer": 10**6}}
    yield "missing", {"model": {}, "model_args": shape}
    yield "list", {"model": {"transformer.wte.weight": [1, 2]}, "model_args": shape}
    yield "expanded", {"model": {**state, "transformer.wte.weight": claim}, "model_args": {**shape, "n_embd": 2**13}}
    yield (
        "not finite",
        {"model": {**state, "transformer.wpe.weight": torch.full((16, 24), math.nan)}, "model_args": shape},
    )
    yield "a number", {"model": {**state, "transformer.wte.weight": torch.tensor(1.0)}, "model_args": shape}
    yield "a list", [state]


@pytest.mark.parametrize("name, content", [pytest.param(*pair, id=pair[0]) for pair in hostile_contents()])
def test_damaged_and_hostile_files_are_one_line(tmp_path, in_process, name, content):
    torch.save(content, tmp_path / "ckpt.pt")
    (tmp_path / "input.txt").write_text(TEXT)
    code, output, errors = in_process("convert.py", "ckpt.pt", "nano.pth", "--data", "input.txt")
    assert code == 2 and not output
    assert_one_error_line(errors, "ckpt.pt")
    assert not (tmp_path / "nano.pth").exists()


def test_cut_off_file_and_missing_vocabulary(tmp_path, in_process):
    write_nanogpt(tmp_path / "ckpt.pt", vocab_size=len(set(TEXT)))
    code, _, errors = in_process("convert.py", "ckpt.pt", "nano.pth")
    assert code == 2
    assert_one_error_line(errors, "--data", "--tokenizer")
    (tmp_path / "input.txt").write_text(TEXT)
    whole = (tmp_path / "ckpt.pt").read_bytes()
    for size in (0, 3, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "ckpt.pt").write_bytes(whole[:size])
        code, _, errors = in_process("convert.py", "ckpt.pt", "nano.pth", "--data", "input.txt")
        assert code == 2
        assert_one_error_line(errors, "ckpt.pt")
