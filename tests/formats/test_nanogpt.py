"""nanoGPT's checkpoints: transformers' GPT-2, saved as nanoGPT saves it, gives the same logits."""

import math

import pytest
import torch

from corpora.tokenizer_files import bpe_to_json
from formats.checkpoint import load_model
from formats.nanogpt import load_nanogpt
from helpers import assert_one_error_line, shaken
from support.command import UserError
from tokenizer import BPETokenizer

transformers = pytest.importorskip("transformers")

TEXT = "To be, or not to be:\nthat is the question. Zzz\n" * 3
ARGS = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 16, "bias": False, "dropout": 0.2}
ARGS["vocab_size"] = len(set(TEXT))


def write_nanogpt(path, prefix="", **changes):
    """A checkpoint as nanoGPT's train.py writes it, with an optimizer's state and its settings; its network. nanoGPT's
    matrices are those of nn.Linear, (out, in); its old versions save the mask of every layer."""
    torch.manual_seed(0)
    args = {**ARGS, **changes}
    no_ends = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(n_positions=args["block_size"], activation_function="gelu", **args, **no_ends)
    model = shaken(transformers.GPT2LMHeadModel(config)).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.zeros(1, 4, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    state = model.state_dict()  # an OrderedDict with an attribute of its own
    for name, tensor in list(state.items()):
        del state[name]
        if name.endswith(".bias") and not args["bias"]:
            tensor.zero_()  # the network's own
        else:
            state[prefix + name] = tensor.T.contiguous() if ".c_" in name and tensor.ndim == 2 else tensor
    for layer in range(args["n_layer"]):
        state[f"{prefix}transformer.h.{layer}.attn.bias"] = torch.ones(16, 16).tril()[None, None]
    content = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": args,
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.4697),
        "config": {"dataset": "shakespeare_char", "compile": True, "learning_rate": 1e-3},
    }
    torch.save(content, path)
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_characters_have_the_same_logits(tmp_path, output_of, bias, prefix):
    characters = sorted(set(TEXT))
    number = {character: i for i, character in enumerate(characters)}  # nanoGPT's own ids
    theirs = write_nanogpt(tmp_path / "ckpt.pt", prefix, bias=bias)
    (tmp_path / "input.txt").write_text(TEXT)
    output_of("convert.py", "ckpt.pt", "nano.pth", "--data", "input.txt")
    loaded = load_model(tmp_path / "nano.pth")
    ours = loaded.model.eval()(torch.tensor([loaded.tokenizer.encode(TEXT[:16])]))
    expected = theirs(torch.tensor([[number[character] for character in TEXT[:16]]])).logits
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
    torch.testing.assert_close(loaded.model.eval()(ids), theirs(ids).logits[..., : tokenizer.vocab_size])


@pytest.mark.parametrize("text, words", [("abc\n", "43"), ("", "empty")])
def test_another_text_is_refused(tmp_path, text, words):
    write_nanogpt(tmp_path / "ckpt.pt", vocab_size=43)
    (tmp_path / "input.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        load_nanogpt(tmp_path / "ckpt.pt", tmp_path / "input.txt", None)


WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"
HOSTILE = {  # name -> what is saved; w: the tensors of a good file
    "other types": lambda w: {"model": w, "model_args": ARGS, "config": bytearray(9)},
    "no model": lambda w: {"model_args": ARGS},
    "no shape": lambda w: {"model": w},
    "huge": lambda w: {"model": w, "model_args": {**ARGS, "n_embd": 10**9}},
    "deep": lambda w: {"model": w, "model_args": {**ARGS, "n_layer": 10**6}},
    "a list for a dropout": lambda w: {"model": w, "model_args": {**ARGS, "dropout": [0.1]}},
    "no tensors": lambda w: {"model": {}, "model_args": ARGS},
    "a list for a tensor": lambda w: {"model": {WTE: [1, 2]}, "model_args": ARGS},
    "an expanded tensor": lambda w: {"model": {**w, WTE: torch.zeros(1).expand(30, 2**40)}, "model_args": ARGS},
    "a NaN": lambda w: {"model": {**w, WPE: torch.full((16, 24), math.nan)}, "model_args": ARGS},
    "a number for a matrix": lambda w: {"model": {**w, WTE: torch.tensor(1.0)}, "model_args": ARGS},
    "a list": lambda w: [w],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_fit_is_one_line(tmp_path, output_of, name):
    write_nanogpt(tmp_path / "ckpt.pt")
    torch.save(HOSTILE[name](torch.load(tmp_path / "ckpt.pt")["model"]), tmp_path / "ckpt.pt")
    (tmp_path / "input.txt").write_text(TEXT)
    assert_one_error_line(output_of("convert.py", "ckpt.pt", "nano.pth", "--data", "input.txt", code=2), "ckpt.pt")
    assert not (tmp_path / "nano.pth").exists()


def test_a_missing_vocabulary_is_named(tmp_path, output_of):
    write_nanogpt(tmp_path / "ckpt.pt")
    assert_one_error_line(output_of("convert.py", "ckpt.pt", "nano.pth", code=2), "--data", "--tokenizer")
