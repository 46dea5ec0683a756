"""What a `.pth` holds and how it is read; the faults of disks and the malice of files have files of their own."""

import dataclasses
import json

import pytest
import torch

from formats.checkpoint import load_model, model_header, model_weights, read_checkpoint, save_model, write_checkpoint
from formats.container import read_container
from helpers import random_ids, shaken_model, tiny_config
from support.command import UserError
from tiny_decoder import TinyGPT
from tokenizer import CharTokenizer

TOKENIZER = CharTokenizer.from_text("abcdefghi")  # with the two special tokens: the tiny config's 11


@pytest.fixture
def saved(tmp_path, tiny_model):
    path = tmp_path / "model.pth"
    save_model(path, tiny_model, TOKENIZER, {"step": 5})
    return path


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"bias": False}, {"gelu": "tanh"}])
def test_a_model_comes_back_equal(tmp_path, changes):
    model, path = shaken_model(num_layers=2, **changes), tmp_path / "model.pth"
    save_model(path, model, TOKENIZER, {"step": 5})
    loaded = load_model(path)
    assert loaded.model.config == model.config and loaded.origin == {"step": 5}
    assert torch.equal(loaded.model.eval()(random_ids(1, 6)), model(random_ids(1, 6)))
    assert loaded.tokenizer.to_plain() == TOKENIZER.to_plain()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_what_torch_save_writes_is_read_as_it_was(tmp_path, dtype):
    """Views, tied tensors, optimizers' states: the reader is held equal to PyTorch's."""
    rows = torch.arange(24).reshape(4, 6).to(dtype)
    content = {"a": rows, "tied": rows.detach(), "view": rows[1:3, ::2].t(), "scalar": rows[3, 3], "empty": rows[:0]}
    content = {"state": {0: content}, "list": [1, -2.5, True, None, "é", 2**40, (0.9, 0.95), (0.9, 0.95)], "none": {}}
    torch.save(content, tmp_path / "a.pt")
    for expected in (torch.load(tmp_path / "a.pt", weights_only=True), content):
        read = read_container(tmp_path / "a.pt")
        for name, tensor in expected["state"].pop(0).items():
            assert torch.equal(read["state"][0][name], tensor) and read["state"][0][name].dtype == dtype
        read["state"].clear()
        assert read == expected


def test_a_tied_weight_is_stored_once_and_stays_tied(tmp_path):
    """Training after loading moves embedding and head together: they are one parameter."""
    model = TinyGPT(tiny_config(tie_embeddings=True))
    save_model(tmp_path / "model.pth", model, TOKENIZER, {})
    _, tensors = read_checkpoint(tmp_path / "model.pth", "model")
    assert "token_embedding.weight" in tensors and "head.weight" not in tensors
    loaded = load_model(tmp_path / "model.pth").model
    assert loaded.num_parameters() == model.num_parameters() == sum(tensor.numel() for tensor in tensors.values())
    assert loaded.head.weight is loaded.token_embedding.weight


def test_kinds_are_told_apart(tmp_path, tiny_model):
    path, header = tmp_path / "a.last.pth", model_header(tiny_model.config, TOKENIZER, {}, "training")
    tensors = {**model_weights(tiny_model), "optimizer/0/0/step": torch.tensor(3.0)}
    write_checkpoint(path, {**header, "training": {"step": 3}, "settings": {}}, tensors)
    found, read = read_checkpoint(path, "training")
    assert found["training"] == {"step": 3} and found["format"] == 3
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with pytest.raises(UserError, match="is of kind 'training', and one of kind 'model' is needed: give NAME.pth"):
        load_model(path)
    with pytest.raises(UserError, match="is of kind 'training', and one of kind 'adapter' is needed"):
        read_checkpoint(path, "adapter")


def test_the_file_reads_without_this_project(saved, tiny_model):
    """A JSON string and a flat table of tensors: `torch.load(weights_only=True)` needs none of our classes."""
    content = torch.load(saved, weights_only=True)
    header = json.loads(content["header"])
    assert content.keys() == {"header", "tensors"} and (header["format"], header["kind"]) == (3, "model")
    assert header["config"] == dataclasses.asdict(tiny_model.config)
    assert content["tensors"].keys() == tiny_model.state_dict().keys()


def test_a_number_that_is_not_finite_is_not_written(saved, tiny_model):
    before = saved.read_bytes()
    with torch.no_grad():
        tiny_model.head.weight[1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="head.weight"):
        save_model(saved, tiny_model, TOKENIZER, {})
    with pytest.raises(ValueError):
        write_checkpoint(saved, {"kind": "model", "origin": {"val_loss": float("inf")}}, {})
    assert saved.read_bytes() == before


def test_a_view_brings_only_its_own_numbers(tmp_path):
    large = torch.zeros(2**18)
    write_checkpoint(tmp_path / "a.pth", {"kind": "model", "config": {}, "origin": {}}, {"view": large[:4]})
    assert (tmp_path / "a.pth").stat().st_size < 2**14
