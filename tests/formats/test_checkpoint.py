"""What a `.pth` holds and how it is read; the faults of disks and the malice of files have files of their own."""

import dataclasses
import json
import os
import zipfile

import pytest
import torch

from formats.checkpoint import (
    ADAPTER,
    FORMAT,
    MODEL,
    TRAINING,
    load_model,
    model_digest,
    model_header,
    model_weights,
    read_checkpoint,
    save_model,
    write_checkpoint,
)
from helpers import tiny_config
from support.command import UserError
from support.durable import write_atomically
from tiny_decoder import TinyGPT, next_token_loss
from tokenizer import CharTokenizer

TOKENIZER = CharTokenizer.from_text("abcdefghi")  # with the two special tokens: the tiny config's 11


@pytest.fixture
def saved(tmp_path, tiny_model):
    path = tmp_path / "model.pth"
    save_model(path, tiny_model, TOKENIZER, {"step": 5})
    return path


def test_a_model_comes_back_equal(saved, tiny_model):
    loaded = load_model(saved)
    ids = torch.tensor([[2, 3, 4]])
    assert torch.equal(loaded.model.eval()(ids), tiny_model(ids))
    assert loaded.model.config == tiny_model.config
    assert loaded.tokenizer.to_plain() == TOKENIZER.to_plain()
    assert loaded.origin == {"step": 5}


def test_a_loaded_model_can_be_trained_on(saved):
    model = load_model(saved).model.train()
    model(torch.tensor([[2, 3]])).sum().backward()
    assert all(p.is_leaf and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("changes", [{"tie_embeddings": True}, {"bias": False}, {"gelu": "tanh"}])
def test_every_shape_of_network_comes_back_equal(tmp_path, changes):
    torch.manual_seed(0)
    model = TinyGPT(tiny_config(**changes)).eval()
    save_model(tmp_path / "model.pth", model, TOKENIZER, {})
    loaded = load_model(tmp_path / "model.pth").model.eval()
    ids = torch.tensor([[2, 3, 4]])
    assert loaded.config == model.config and torch.equal(loaded(ids), model(ids))


def test_a_tied_weight_is_stored_once_and_stays_tied(tmp_path):
    """A step of training after loading moves embedding and head together, as it does in the model that was saved."""
    torch.manual_seed(0)
    model = TinyGPT(tiny_config(tie_embeddings=True))
    save_model(tmp_path / "model.pth", model, TOKENIZER, {})
    _, tensors = read_checkpoint(tmp_path / "model.pth", MODEL)
    assert "token_embedding.weight" in tensors and "head.weight" not in tensors
    loaded = load_model(tmp_path / "model.pth").model
    assert loaded.num_parameters() == model.num_parameters() == sum(tensor.numel() for tensor in tensors.values())
    ids = torch.tensor([[2, 3, 4, 5]])
    for one in (model, loaded):
        optimizer = torch.optim.SGD(one.parameters(), lr=1.0)
        next_token_loss(one(ids[:, :-1]), ids[:, 1:]).backward()
        optimizer.step()
        assert torch.equal(one.head.weight, one.token_embedding.weight)
    assert torch.equal(loaded(ids), model(ids))
    save_model(tmp_path / "again.pth", loaded, TOKENIZER, {})
    _, tensors = read_checkpoint(tmp_path / "again.pth", MODEL)
    assert "head.weight" not in tensors and torch.equal(tensors["token_embedding.weight"], model.head.weight)


def test_kinds_are_told_apart(tmp_path, tiny_model):
    path, header = tmp_path / "a.last.pth", model_header(tiny_model.config, TOKENIZER, {}, TRAINING)
    tensors = {**model_weights(tiny_model), "optimizer/0/0/step": torch.tensor(3.0)}
    write_checkpoint(path, {**header, "training": {"step": 3}, "settings": {}}, tensors)
    found, read = read_checkpoint(path, TRAINING)
    assert found["training"] == {"step": 3} and found["format"] == FORMAT
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with pytest.raises(UserError, match="is of kind 'training', and one of kind 'model' is needed: give NAME.pth"):
        load_model(path)
    with pytest.raises(UserError, match="is of kind 'training', and one of kind 'adapter' is needed"):
        read_checkpoint(path, ADAPTER)


def test_the_file_reads_without_this_project(saved, tiny_model):
    """A JSON string and a flat table of tensors: `torch.load(weights_only=True)` needs none of our classes."""
    content = torch.load(saved, weights_only=True)
    header = json.loads(content["header"])
    assert content.keys() == {"header", "tensors"} and (header["format"], header["kind"]) == (FORMAT, "model")
    assert header["config"] == dataclasses.asdict(tiny_model.config)
    assert content["tensors"].keys() == tiny_model.state_dict().keys()


def test_a_number_that_is_not_finite_is_not_written(saved, tiny_model):
    before = saved.read_bytes()
    with torch.no_grad():
        tiny_model.head.weight[1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="head.weight"):
        save_model(saved, tiny_model, TOKENIZER, {})
    with pytest.raises(ValueError):
        write_checkpoint(saved, {"kind": MODEL, "origin": {"val_loss": float("inf")}}, {})
    assert saved.read_bytes() == before


def test_a_view_brings_only_its_own_numbers(tmp_path):
    large = torch.zeros(2**18)
    write_checkpoint(tmp_path / "a.pth", {"kind": MODEL, "config": {}, "origin": {}}, {"view": large[:4]})
    assert (tmp_path / "a.pth").stat().st_size < 2**14


def edited(path, tmp_path, edit):
    """A copy of a checkpoint whose header and tensors went through `edit`."""
    content = torch.load(path, weights_only=True)
    header, tensors = json.loads(content["header"]), content["tensors"]
    edit(header, tensors)
    copy = tmp_path / "edited.pth"
    torch.save({"header": json.dumps(header), "tensors": tensors}, copy)
    return copy


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda h, t: h.update(format=FORMAT + 1), f"another version of TinyGPT .format {FORMAT + 1}"),
        (lambda h, t: h.pop("format"), "'format' is missing or wrong"),
        (lambda h, t: h.pop("config"), "'config' is missing or wrong"),
        (lambda h, t: h.update(origin=[]), "'origin' is missing or wrong"),
        (lambda h, t: h["config"].update(num_heads=3), "embed_dim .* divisible by num_heads"),
        (lambda h, t: h["config"].update(extra=3), "a field that this version does not know"),
        (lambda h, t: h["config"].pop("max_seq"), "or lacks one"),
        (lambda h, t: h["config"].update(tie_embeddings=True), "unexpected tensor 'head.weight'"),
        (lambda h, t: h["config"].update(bias=False), "unexpected tensor"),
        (lambda h, t: h["config"].update(num_layers=3), "'blocks.2.* is missing"),
        (lambda h, t: h["config"].update(num_layers=1), "unexpected tensor 'blocks.1"),
        (lambda h, t: h["config"].update(max_seq=16_384), "'position_embedding.weight' is \\(6, 8\\)"),
        (lambda h, t: t.pop("head.weight"), "'head.weight' is missing"),
        (lambda h, t: t.update(more=torch.zeros(1)), "unexpected tensor 'more'"),
        (lambda h, t: t.update({"head.weight": torch.zeros(12, 8)}), "'head.weight' is \\(12, 8\\)"),
        (lambda h, t: t.update({"head.weight": torch.zeros(11, 8).double()}), "float64"),
        (lambda h, t: t["head.weight"].fill_(float("nan")), "'head.weight' holds numbers that are not finite"),
        (lambda h, t: h["tokenizer"].update(characters="abc"), "the tokenizer has 5 tokens, the model 11"),
    ],
)
def test_content_that_does_not_fit_is_named(saved, tmp_path, edit, words):
    with pytest.raises(UserError, match=words):
        load_model(edited(saved, tmp_path, edit))


def test_a_flipped_bit_is_noticed(saved):
    with zipfile.ZipFile(saved) as container:
        largest = max(container.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(saved.read_bytes())
    content[content.index(largest.filename.encode()) + 200] ^= 1
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)  # PyTorch does not notice
    with pytest.raises(UserError, match="damaged"):
        load_model(saved)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="python main.py"):
        load_model(tmp_path / "none.pth")


def test_a_failed_write_leaves_the_old_file_and_no_other(saved):
    before = saved.read_bytes()

    def write(file):
        file.write(b"half of it")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(saved, write)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_huge_configs_are_refused_before_memory_is_taken(saved, tmp_path):
    """A width of 2**14 and 2**10 layers would be 13 TB of weights."""
    path = edited(saved, tmp_path, lambda h, t: h["config"].update(embed_dim=2**14, num_layers=2**10, num_heads=1))
    with pytest.raises(UserError, match="edited.pth cannot be used"):
        load_model(path)


def test_the_digest_is_of_shape_vocabulary_and_weights(tiny_model):
    def digest(model, tokenizer=TOKENIZER, **changes):
        return model_digest(dataclasses.replace(model.config, **changes), tokenizer, model_weights(model))

    first = digest(tiny_model)
    assert first == digest(tiny_model, dropout=0.3, attention_dropout=0.1), "dropout is for training only"
    others = {digest(tiny_model, gelu="tanh"), digest(tiny_model, CharTokenizer.from_text("abcdefghj"))}
    with torch.no_grad():
        tiny_model.head.weight[3, 3] += 1e-6
    assert len({first, *others, digest(tiny_model)}) == 4
