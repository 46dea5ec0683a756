"""Checkpoints of format 1, whose head had a bias, converted into today's format."""

import dataclasses

import pytest
import torch

from formats.checkpoint import load_model
from helpers import assert_one_error_line, tiny_config
from tiny_decoder import TinyGPT
from tokenizer import CharTokenizer

IDS = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))


def write_format1(path, characters: str = "abcdefghi", bias: float = 1.0, embed_dim: int = 16, **changes):
    """A file as format 1 wrote it; returns the logits of its model, head's bias included, for IDS."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer.from_text(characters)
    config = tiny_config(vocab_size=tokenizer.vocab_size, embed_dim=embed_dim)
    model = TinyGPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape)
        head_bias = bias * torch.randn(config.vocab_size)
        logits = model(IDS) + head_bias
    known = ("vocab_size", "max_seq", "embed_dim", "num_heads", "num_layers", "dropout", "attention_dropout")
    content = {
        "format": 1,
        "kind": "model",
        "config": {name: value for name, value in dataclasses.asdict(config).items() if name in known},
        "tokenizer": tokenizer.to_plain(),
        "vocabulary": "0" * 64,
        "weights": {**model.state_dict(), "head.bias": head_bias},
        "origin": {"corpus": "synthetic", "step": 5, "val_loss": 2.5},
    }
    torch.save({**content, **changes}, path)
    return logits


def test_a_model_of_format_1_gives_the_same_logits(in_process, tmp_path):
    """11 tokens and a width of 16: the head's bias fits into the final norm's."""
    expected = write_format1(tmp_path / "old.pth")
    before = (tmp_path / "old.pth").read_bytes()
    code, _, errors = in_process("convert.py", "old.pth", "new.pth")
    assert code == 0, errors
    loaded = load_model(tmp_path / "new.pth")
    torch.testing.assert_close(loaded.model.eval()(IDS), expected, rtol=0, atol=1e-4)
    assert loaded.origin == {"corpus": "synthetic", "step": 5, "val_loss": 2.5}
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("abi")) == "abi"
    assert (tmp_path / "old.pth").read_bytes() == before


def test_an_origin_that_json_cannot_hold_is_left_out(in_process, tmp_path):
    """It ended with a traceback."""
    write_format1(tmp_path / "old.pth", origin={"step": 5, "val_loss": float("nan"), "shape": (1, 2)})
    code, _, errors = in_process("convert.py", "old.pth", "new.pth")
    assert code == 0, errors
    assert load_model(tmp_path / "new.pth").origin == {"step": 5}


def test_a_bias_that_does_not_fit_is_refused(in_process, tmp_path):
    """22 tokens and a width of 16: no shift of the final norm gives every token a bias of its own."""
    write_format1(tmp_path / "old.pth", "abcdefghijklmnopqrst")
    code, _, errors = in_process("convert.py", "old.pth", "new.pth")
    assert code == 2 and not (tmp_path / "new.pth").exists()
    assert_one_error_line(errors, "old.pth", "its head's bias cannot move into the final norm")


def test_a_bias_of_zero_always_fits(in_process, tmp_path):
    expected = write_format1(tmp_path / "old.pth", "abcdefghijklmnopqrst", bias=0.0)
    assert in_process("convert.py", "old.pth", "new.pth")[0] == 0
    torch.testing.assert_close(load_model(tmp_path / "new.pth").model.eval()(IDS), expected, rtol=0, atol=1e-5)


def test_other_commands_say_how_to_convert_it(in_process, tmp_path):
    write_format1(tmp_path / "old.pth")
    code, _, errors = in_process("generate.py", "--checkpoint", "old.pth")
    assert code == 2
    assert_one_error_line(errors, "old.pth has format 1", "python convert.py OLD.pth NEW.pth")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"kind": "training"}, "only models are converted"),
        ({"weights": {}}, "it lacks a tensor"),
        ({"config": {"vocab_size": 11}}, "lacks one"),
        ({"tokenizer": {}}, "cannot be used"),
    ],
)
def test_damaged_files_of_format_1_are_refused(in_process, tmp_path, changes, words):
    write_format1(tmp_path / "old.pth", **changes)
    code, _, errors = in_process("convert.py", "old.pth", "new.pth")
    assert code == 2 and not (tmp_path / "new.pth").exists()
    assert_one_error_line(errors, "old.pth", words)


def test_no_file_is_overwritten(in_process, tmp_path):
    write_format1(tmp_path / "old.pth")
    (tmp_path / "new.pth").write_bytes(b"mine")
    code, _, errors = in_process("convert.py", "old.pth", "new.pth")
    assert code == 2 and (tmp_path / "new.pth").read_bytes() == b"mine"
    assert_one_error_line(errors, "new.pth")
