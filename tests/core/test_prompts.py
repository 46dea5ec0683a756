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
from sampling.beam import beam_search
from sampling.prompts import changed, read_prompts, unescape
from sampling.score import token_losses
from sampling.text_stream import TextStream
from support.command import UserError, visible
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


def test_prompt_and_stop_follow_the_same_rule(model_file, in_process):
    code, out, _ = in_process("generate.py", "--prompt", r"a\nb", "--max-new-tokens", 0)
    assert code == 0 and out == "a\nb\n"
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


def test_a_prompt_from_standard_input(model_file, in_process, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\ncd\n"))
    code, out, _ = in_process("generate.py", "--prompt", "-", "--max-new-tokens", 0)
    assert code == 0 and out == "ab\ncd\n"


def test_whoever_forgets_the_flag_is_told(in_process):
    code, _, errors = in_process("generate.py", "ROMEO: hi")
    assert code == 2
    assert_one_error_line(errors, "python generate.py --prompt 'ROMEO: hi'")


@pytest.mark.parametrize("flag, value", [("--temperature", 0.5), ("--top-k", 3), ("--seed", 1), ("--num-samples", 2)])
def test_beams_refuse_what_they_would_ignore(in_process, flag, value):
    code, _, errors = in_process("generate.py", "--beams", 2, flag, value)
    assert code == 2
    assert_one_error_line(errors, flag, "--beams")


def test_a_conversation(model_file, in_process, monkeypatch):
    lines = ["a", "/max-new-tokens 3", "/seed 7", "b", "/temperature -1", "/colour red", "/stop c"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, errors = in_process("generate.py", "--interactive", "--max-new-tokens", 2, "--seed", 1)
    assert code == 0 and "Traceback" not in errors
    assert "2 tokens" in errors and "3 tokens" in errors and "seed 7" in errors
    assert "--temperature" in errors and "/colour" in errors and "/top-k 0" in errors
    assert "> a" in out.replace("> ", "> ") and out.count("> ") == len(lines) + 1


def test_scores_equal_a_naive_loop(model_file, in_process, tmp_path):
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
    code, out, _ = in_process("generate.py", "--score", "t.txt", "--explain")
    assert code == 0 and out.count("'") >= 2 * len(text)
    nats = sum(expected)
    assert f"{nats / len(text):.4f} nats per token, perplexity {math.exp(nats / len(text)):.2f}" in out
    assert f"{nats / math.log(2) / len(text):.4f} bits per byte" in out


def test_a_changed_setting_leaves_the_stop_strings_alone():
    r"""They were unescaped once more with every change: the text \\n became a new line."""
    settings = changed(generate.parse_settings(["--stop", r"\\n"]), generate.make_parser(), "temperature 0.5")
    assert settings.stop == [r"\n"] and settings.temperature == 0.5
    assert changed(settings, generate.make_parser(), r"stop \n").stop == ["\n"]


class FixedWindow:
    """A window whose logits are always the same."""

    def __init__(self, logits, width):
        self.logits, self.rows = torch.tensor(logits), [[0] for _ in range(width)]

    def next_logits(self):
        return self.logits.repeat(len(self.rows), 1)

    def append(self, tokens):
        pass

    def reorder(self, rows):
        pass


def test_a_beam_does_not_run_dry_when_several_tokens_end_a_text():
    """It looked at 2 x width candidates: with width 1 and two final tokens on top, it ended at once."""

    def follow(state, token):
        return None, token in (1, 2)

    window = FixedWindow([0.0, 3.0, 2.0, 1.0], 1)
    best = beam_search(window, 5, 1, length_penalty=2.0, follow=follow)[0]
    assert best.tokens == [3, 3, 3, 3, 1]
    assert math.isclose(best.score(2.0), -0.408, abs_tol=5e-4)


@pytest.mark.parametrize("penalty", [-100.0, 100.0])
def test_extreme_length_penalties_do_not_overflow(penalty):
    best = beam_search(FixedWindow([0.0, 1.0], 2), 2000, 2, length_penalty=penalty)[0]
    assert best.score(penalty) <= 0


def test_a_fork_of_a_stream_goes_on_by_itself():
    tokenizer = CharTokenizer.from_text("abc\n")
    stream = TextStream(tokenizer, ("ab",))
    first = stream.add(tokenizer.encode("a")[0])
    twin = stream.fork()
    assert twin.add(tokenizer.encode("b")[0]) == "" and twin.stopped
    assert first + stream.add(tokenizer.encode("c")[0]) + stream.finish() == "ac" and not stream.stopped


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_shown_control_characters_and_a_pipe_gets_the_text():
    text = "a\x1b]52;c;Z\x07\n\tb\x9b"
    shown = visible(text, Terminal())
    assert "\x1b" not in shown and "\x07" not in shown and "\x9b" not in shown and "\n\t" in shown
    assert visible(text, io.StringIO()) == text


def test_exclusive_sources_are_named():
    with pytest.raises(UserError, match="--prompt and --score"):
        generate.parse_settings(["--prompt", "a", "--score", "f"])
