"""What a `.pth` holds and how it is read; the faults of disks and the malice of files have files of their own."""

import json
import os
import zipfile

import pytest
import torch

from conftest import tiny_config
from formats.checkpoint import FORMAT, MODEL, TRAINING, load_checkpoint, save_checkpoint, write_atomically
from tiny_decoder import TinyGPT
from tokenizer import CharTokenizer

TOKENIZER = CharTokenizer.from_text("abcdefghi")  # with the two special tokens: the tiny config's 11


@pytest.fixture
def saved(tmp_path, tiny_model):
    path = tmp_path / "model.pth"
    save_checkpoint(path, tiny_model, TOKENIZER, {"step": 5}, training=None)
    return path


def test_a_model_comes_back_equal(saved, tiny_model):
    loaded = load_checkpoint(saved)
    ids = torch.tensor([[2, 3, 4]])
    assert torch.equal(loaded.model.eval()(ids), tiny_model(ids))
    assert loaded.model.config == tiny_model.config
    assert loaded.tokenizer.to_plain() == TOKENIZER.to_plain()
    assert loaded.origin == {"step": 5} and loaded.training == {}


def test_a_loaded_model_can_be_trained_on(saved):
    model = load_checkpoint(saved).model.train()
    model(torch.tensor([[2, 3]])).sum().backward()
    assert all(p.is_leaf and p.grad is not None for p in model.parameters())


def test_a_training_state_comes_back(tmp_path, tiny_model):
    path = tmp_path / "a.last.pth"
    save_checkpoint(path, tiny_model, TOKENIZER, {}, {"step": 3, "optimizers": []})
    assert load_checkpoint(path, TRAINING).training == {"step": 3, "optimizers": []}
    with pytest.raises(ValueError, match="is a training checkpoint, and a model checkpoint is needed"):
        load_checkpoint(path, MODEL)


def test_the_file_reads_without_this_project(saved):
    """Plain data and tensors only: `torch.load(weights_only=True)` needs none of our classes."""
    content = torch.load(saved, weights_only=True)
    assert content["format"] == FORMAT and content["kind"] == "model"
    assert json.dumps({key: content[key] for key in ("config", "tokenizer", "origin")})


def edited(path, tmp_path, edit):
    """A copy of a checkpoint whose content went through `edit`."""
    content = torch.load(path, weights_only=True)
    edit(content)
    copy = tmp_path / "edited.pth"
    torch.save(content, copy)
    return copy


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda c: c.update(format=FORMAT + 1), f"format {FORMAT + 1}"),
        (lambda c: c.pop("format"), "no format number"),
        (lambda c: c.pop("weights"), "'weights' is missing or wrong"),
        (lambda c: c["config"].update(num_heads=3), "embed_dim .* divisible by num_heads"),
        (lambda c: c["config"].update(extra=3), "extra"),
        (lambda c: c["config"].update(num_layers=3), "'blocks.2.* is missing"),
        (lambda c: c["config"].update(num_layers=1), "unexpected tensor 'blocks.1"),
        (lambda c: c["config"].update(max_seq=16_384), "'position_embedding.weight' is \\(6, 8\\)"),
        (lambda c: c["weights"].pop("head.bias"), "'head.bias' is missing"),
        (lambda c: c["weights"].update(more=torch.zeros(1)), "unexpected tensor 'more'"),
        (lambda c: c["weights"].update({"head.bias": torch.zeros(12)}), "'head.bias' is \\(12,\\)"),
        (lambda c: c["weights"].update({"head.bias": torch.zeros(11).double()}), "float64"),
        (lambda c: c["weights"]["head.bias"].fill_(float("nan")), "'head.bias' holds numbers that are not finite"),
        (lambda c: c["tokenizer"].update(characters="abc"), "the tokenizer has 5 tokens, the model 11"),
    ],
)
def test_content_that_does_not_fit_is_named(saved, tmp_path, edit, words):
    with pytest.raises(ValueError, match=words):
        load_checkpoint(edited(saved, tmp_path, edit))


def test_a_flipped_bit_is_noticed(saved):
    with zipfile.ZipFile(saved) as container:
        largest = max(container.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(saved.read_bytes())
    content[content.index(largest.filename.encode()) + 200] ^= 1
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)  # PyTorch does not notice
    with pytest.raises(ValueError, match="checksum"):
        load_checkpoint(saved)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="python main.py"):
        load_checkpoint(tmp_path / "none.pth")


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
    path = edited(saved, tmp_path, lambda c: c["config"].update(embed_dim=2**14, num_layers=2**10, num_heads=1))
    with pytest.raises(ValueError, match="edited.pth cannot be used"):
        load_checkpoint(path)


def test_every_weight_is_in_the_file(saved):
    model = TinyGPT(tiny_config(num_layers=2))
    assert torch.load(saved, weights_only=True)["weights"].keys() == model.state_dict().keys()
