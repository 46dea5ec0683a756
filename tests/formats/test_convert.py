"""convert.py: what is in a file, which formats go where, and what it never overwrites."""

import os

import pytest
import torch

from formats.checkpoint import load_model, save_model
from helpers import SMALL_NETWORK, assert_one_error_line
from support.durable import write_folder_atomically
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import CharTokenizer


@pytest.fixture
def model(tmp_path):
    """a.pth in the working folder."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer.from_text("abc\n")
    model = TinyGPT(TinyGPTConfig(tokenizer.vocab_size, 8, 8, 2, 1, bias=False, tie_embeddings=True))
    save_model(tmp_path / "a.pth", model, tokenizer, {"corpus": "letters", "step": 1200, "val_loss": 1.5})
    return model


def facts(output: str) -> dict[str, str]:
    """The lines of `convert.py FILE` alone, by their first words."""
    pairs = (line.split("  ", 1) for line in output.splitlines())
    return {name: value.strip() for name, value in pairs}


def test_a_model_alone_is_described(model, tmp_path, output_of):
    assert facts(output_of("convert.py", "a.pth")) == {
        "kind": "model",
        "shape": "1 layers, width 8, 2 heads, window 8; no biases, exact GELU, tied head",
        "tokenizer": "char, 6 tokens; a text starts after '\\n'",
        "corpus": "letters",
        "step": "1200",
        "val loss": "1.5000",
        "parameters": f"{model.num_parameters():,}",
        "size": f"{(tmp_path / 'a.pth').stat().st_size:,} bytes",
    }


def test_training_states_and_adapters_are_described(tmp_path, output_of):
    (tmp_path / "my.txt").write_text("some text to learn, and a little more of it\n" * 20)
    flags = ("--data", "my.txt", "--device", "cpu", "--steps", "3")
    output_of("main.py", *flags, *SMALL_NETWORK, "--out", "base.pth")
    (tmp_path / "my.txt").write_text("some text to learn, and a little more of it?\n" * 20)
    more = ("--init-from", "base.pth", "--lora-rank", "2", "--max-seq", "8", "--batch-size", "4", "--out", "lora.pth")
    output_of("main.py", *flags, *more)
    names = ("base.pth", "base.last.pth", "lora.pth")
    base, state, adapter = (facts(output_of("convert.py", name)) for name in names)
    assert state["kind"] == "training" and state["parameters"] == base["parameters"]
    assert adapter["kind"] == "adapter" and "rank 2" in adapter["adapter"] and adapter["new characters"] == "1"
    assert int(adapter["parameters"].replace(",", "")) < int(base["parameters"].replace(",", ""))
    assert base["corpus"] == adapter["corpus"] == "my.txt", "without its folder"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nothing.pth",), ("no such file",)),
        (("a.pth", "a.onnx"), (".gguf", ".pth")),
        (("a.pth", "b.pth", "--data", "x.txt"), ("--data", "ckpt.pt")),
        (("a.pth", "--precision", "int8"), ("--precision", "are for a page")),
        (("a.pth", "a.pth"), ("--force",)),
        (("text.pth",), ("not a TinyGPT checkpoint", "not a .pth")),
        (("gpt2/", "b.pth"), ("gpt2: no such file", "docs/formats.md")),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, output_of, arguments, words):
    (tmp_path / "text.pth").write_text("not a model")
    before = (tmp_path / "a.pth").read_bytes()
    assert_one_error_line(output_of("convert.py", *arguments, code=2), *words)
    assert (tmp_path / "a.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "text.pth"]


def test_control_characters_in_a_file_do_not_reach_the_terminal(model, tmp_path, output_of):
    loaded = load_model(tmp_path / "a.pth")
    save_model(tmp_path / "b.pth", loaded.model, loaded.tokenizer, {"corpus": "\x1b]0;owned\x07"})
    assert "\x1b" not in output_of("convert.py", "b.pth")


def test_force_replaces_a_model(model, tmp_path, output_of):
    (tmp_path / "b.pth").write_text("mine")
    output_of("convert.py", "a.pth", "b.pth", "--force")
    assert (tmp_path / "b.pth").read_bytes() == (tmp_path / "a.pth").read_bytes()


@pytest.mark.parametrize("way", ["the shell's own", "a link", "earlier files"])
def test_a_folder_that_is_there_is_filled_and_stays(model, tmp_path, output_of, monkeypatch, way):
    pytest.importorskip("safetensors")
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    if way == "earlier files":
        output_of("convert.py", "a.pth", "out/")
        (folder / "new.0123abcd.tmp").mkdir()  # a killed command's
    before = folder.stat().st_ino
    monkeypatch.chdir(folder)
    target = {"the shell's own": "./", "a link": "../link/", "earlier files": "./"}[way]
    output_of("convert.py", "../a.pth", target, "--force")
    assert folder.stat().st_ino == before and len(os.listdir(".")) == 5 and (folder / "config.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "link", "out"] and (tmp_path / "link").is_symlink()


def test_a_folder_that_cannot_be_written_keeps_the_earlier_files(tmp_path):
    folder = tmp_path / "out"
    write_folder_atomically(folder, {"a": b"first"})
    with pytest.raises(TypeError):
        write_folder_atomically(folder, {"a": b"second", "b": None})
    assert (folder / "a").read_bytes() == b"first"
    assert [os.listdir(path) for path in (tmp_path, folder)] == [["out"], ["a"]]
