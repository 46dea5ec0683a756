"""Prompts and conversations: escapes, files of several lines, settings changed while talking, scores."""

import argparse
import io
import math
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import generate
from formats.checkpoint import save_model
from helpers import assert_one_error_line, tiny_config
from sampling.interactive import changed
from sampling.prompts import read_prompts, unescape
from sampling.score import token_losses
from tiny_decoder import TinyGPT
from tokenizer import CharTokenizer


@pytest.fixture
def model_file(tmp_path):
    """A model of a few characters in checkpoints/tiny_decoder.pth."""
    tokenizer = CharTokenizer.from_text("\nabcdefgh ")
    torch.manual_seed(0)
    model = TinyGPT(tiny_config(vocab_size=tokenizer.vocab_size), "sinusoid")
    save_model(tmp_path / "checkpoints" / "tiny_decoder.pth", model, tokenizer, {})
    return model.eval(), tokenizer


@pytest.mark.parametrize(
    "typed, meant",
    [(r"a\nb", "a\nb"), (r"\t", "\t"), (r"\\n", r"\n"), (r"\\\n", "\\\n"), (r"\x41 \q", r"\x41 \q"), ("\\", "\\")],
)
def test_one_rule_for_backslashes(typed, meant):
    assert unescape(typed) == meant


def test_prompt_and_stop_follow_the_same_rule(model_file, output_of, monkeypatch):
    assert output_of("generate.py", "--prompt", r"a\nb", "--max-new-tokens", 0) == "a\nb\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffab\n"))  # from an editor that marks UTF-8
    assert output_of("generate.py", "--prompt", "-", "--max-new-tokens", 0) == "ab\n"
    assert generate.parse_settings(["--stop", r"\n\n", "--stop", r"\\n"]).stop == ["\n\n", r"\n"]


@pytest.mark.parametrize(
    "content, prompts",
    [
        ("a\n\nb\n", ["a", "b"]),
        ("a\nb\n---\nc\n", ["a\nb", "c"]),
        ("---\na\n---\n", ["a"]),
        ("a --- b\nc", ["a --- b", "c"]),
    ],
)
def test_prompt_files(tmp_path, content, prompts):
    (tmp_path / "p.txt").write_text(content, encoding="utf-8")
    assert read_prompts(argparse.Namespace(prompt=None, prompt_file=str(tmp_path / "p.txt"))) == prompts


@pytest.mark.parametrize("flags", [["--prompt", "-"], ["--interactive"]])
def test_standard_input_that_is_not_utf8_is_one_line(model_file, in_process, monkeypatch, flags):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8", "surrogateescape"))
    code, _, errors = in_process("generate.py", *flags)  # a conversation has shown its "> "
    assert code == 2
    assert_one_error_line(errors, "standard input", "UTF-8", "0xff")


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_an_unknown_character_is_one_line(model_file, output_of):
    assert_one_error_line(output_of("generate.py", "--prompt", "é", code=2), "U+00E9")


def test_a_conversation(model_file, in_process, monkeypatch):
    lines = ["a", "/max-new-tokens 3", "/seed 7", "// b", "/temperature -1", "/temp 1", "/stop c", "/", "/quit", "a"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, errors = in_process("generate.py", "--interactive", "--max-new-tokens", 2, "--seed", 1)
    assert code == 0 and "Traceback" not in errors
    assert "2 tokens" in errors and "3 tokens" in errors and "seed 7" in errors and out.count("> ") == 9
    mistakes = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(mistakes) == 2 and "--temperature" in mistakes[0] and "/temp is" in mistakes[1]
    assert "/top-k 0" in errors and "/seed 7" in errors and "/stop ['c']" in errors


def test_a_setting_alone_takes_its_default_and_others_stay():
    r"""No seed could be unset; the stop strings were unescaped once more with every change: \\n became a new line."""
    parser, settings = generate.make_parser(), generate.parse_settings(["--stop", r"\\n", "--seed", "5"])
    settings = changed(settings, parser, "temperature 0.5")
    assert settings.stop == [r"\n"] and settings.temperature == 0.5
    settings = changed(changed(changed(settings, parser, "seed"), parser, "temperature"), parser, r"stop \n")
    assert settings.seed is None and settings.temperature == 0.8 and settings.stop == ["\n"]
    assert changed(settings, parser, "stop").stop == []


def test_scores_equal_a_naive_loop(model_file, output_of, tmp_path):
    model, tokenizer = model_file
    text = "ab cd\nefgh abc"
    ids = [tokenizer.start_id, *tokenizer.encode(text)]
    window, expected = model.config.max_seq, []
    for start in range(0, len(ids) - 1, window):
        piece = ids[start : start + window + 1]
        for end in range(1, len(piece)):
            logits = model(torch.tensor([piece[:end]]))[0, -1]
            expected.append(F.cross_entropy(logits[None], torch.tensor([piece[end]])).item())
    assert np.allclose(token_losses(model, np.array(ids)), expected, atol=1e-5)
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    out = output_of("generate.py", "--score", "t.txt", "--explain")
    assert out.count("'") >= 2 * len(text)
    nats = sum(expected)
    assert f"{nats / len(text):.4f} nats per token, perplexity {math.exp(nats / len(text)):.2f}" in out
    assert f"{nats / math.log(2) / len(text):.4f} bits per byte" in out
