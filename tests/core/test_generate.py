"""The command as a user runs it: what it prints where, and which mistakes it names."""

import io
import re
import sys

import pytest
import torch

from conftest import environment
from formats.checkpoint import save_model
from helpers import ROOT, assert_one_error_line, posix, written
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import CharTokenizer

MODEL = "model.pth"


@pytest.fixture
def sample(tmp_path, in_process):
    """Run generate.py on a small random model: -> (exit code, stdout, stderr)."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer.from_text("\nabcdefgh é")
    config = TinyGPTConfig(tokenizer.vocab_size, max_seq=8, embed_dim=16, num_heads=2, num_layers=2)
    save_model(tmp_path / MODEL, TinyGPT(config), tokenizer, {})
    return lambda *arguments: in_process("generate.py", "--checkpoint", MODEL, *arguments)


@pytest.fixture
def text_of(sample, output_of):
    return lambda *arguments, **options: output_of("generate.py", "--checkpoint", MODEL, *arguments, **options)


def test_text_goes_to_stdout_and_the_rest_to_stderr(sample):
    code, output, errors = sample("--prompt", "abc", "--max-new-tokens", 20, "--seed", 3)
    assert code == 0 and output.startswith("abc") and output.endswith("\n") and len(output) == 24
    assert re.fullmatch(r"20 tokens, [\d,]+ tokens/s, seed 3\n", errors)


def test_without_a_seed_the_one_sampled_is_shown(sample, text_of):
    _, output, errors = sample("--max-new-tokens", 30)
    assert text_of("--max-new-tokens", 30, "--seed", errors.split()[-1]) == output


def test_a_batch_gives_every_prompt_the_texts_it_gets_alone(sample, text_of, tmp_path):
    """Each further text has the next seed; the headers stay out of a piped stdout, so that it holds the texts alone."""
    prompts = ["a", "bcdefgh abcdefg", "é b"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    options = ("--max-new-tokens", 12, "--seed")
    code, output, errors = sample("--prompt-file", "prompts.txt", "--num-samples", 2, *options, 5)
    singles = [text_of("--prompt", prompts[row // 2], *options, 5 + row) for row in range(6)]
    assert code == 0 and output == "".join(singles)
    assert re.findall("^--- text (.*)", errors, re.MULTILINE) == [f"{row + 1} (seed {5 + row})" for row in range(6)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_the_headers_and_no_control_characters(sample, monkeypatch):
    """A text from others could set the window's title, and worse."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    sample("--prompt", "a\x1b]0;x\x07b\n\x9bc", "--num-samples", 2, "--max-new-tokens", 0, "--seed", 5)
    text = "a\\x1b]0;x\\x07b\n\\x9bc\n"
    assert sys.stdout.getvalue() == f"--- text 1 (seed 5)\n{text}--- text 2 (seed 6)\n{text}"


def test_stop_string_ends_the_text_and_is_not_printed(text_of):
    whole = text_of("--prompt", "ab", "--seed", 1, "--max-new-tokens", 40)[2:-1]
    stop = whole[10:12]
    cut = text_of("--prompt", "ab", "--seed", 1, "--max-new-tokens", 40, "--stop", "never", "--stop", stop)
    assert cut == "ab" + whole[: whole.index(stop)] + "\n"


def test_beams_print_the_best_with_scores(sample, text_of):
    _, output, errors = sample("--prompt", "ab", "--beams", 4, "--n-best", 2, "--max-new-tokens", 5)
    scores = [float(score) for score in re.findall(r"score (-[\d.]+), log-probability -", errors)]
    assert len(scores) == 2 and scores[0] >= scores[1]
    assert output.startswith(text_of("--prompt", "ab", "--beams", 4, "--max-new-tokens", 5))
    likeliest = text_of("--prompt", "ab", "--beams", 1, "--max-new-tokens", 1)[2:-1]
    stopped = text_of("--prompt", "ab", "--beams", 4, "--length-penalty", 0, "--stop", likeliest)
    assert stopped == "ab\n"  # without the penalty no text is likelier than its first token


def test_explain_shows_the_filters_at_work(sample, text_of):
    arguments = ("--top-k", 3, "--top-p", 0.9, "--max-new-tokens", 2, "--seed", 1, "--prompt", "ab")
    code, output, errors = sample(*arguments, "--explain")
    assert code == 0 and output == text_of(*arguments)
    tables = errors.split("\ntoken ")[1:]
    assert len(tables) == 2
    for table, character in zip(tables, output[2:4], strict=True):
        header, *rows = table.splitlines()
        assert header.split() == ["model", "temperature", "top-k", "top-p"]
        (sampled,) = [row for row in rows if row.endswith(" <- sampled")]
        assert sampled.split("'")[1] == character.replace("\n", "\\n")
        candidates = next(n for n, row in enumerate(rows) if row.startswith("(candidates)"))
        assert rows[candidates].split()[1:4] == ["11", "11", "3"]
        kept = [row.removesuffix(" <- sampled").split()[-2] for row in rows[:candidates]]  # the column of top-k
        assert sum(cell != "-" for cell in kept) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stride", 9], ["--stride", "8"]),
        pytest.param(["--prompt", "a", "b"], ["--prompt 'a b'"], marks=posix),
        (["--beams", 2, "--n-best", 3], ["--n-best"]),
        (["--beams", 2, "--temperature", 1, "--seed", 1], ["--beams makes no use of --seed, --temperature"]),
        (["--prompt", "a", "--score", "f"], ["--score makes no use of --prompt"]),
        (["--checkpoint", "."], [". is a folder", ".pth"]),
        (["--prompt-file", "empty.txt"], ["no text"]),
        (["--prompt-file", "latin.txt"], ["UTF-8"]),
        (["--prompt-file", "none.txt"], ["none.txt: no such file; check"]),
        (["--score", "none.txt"], ["none.txt: no such file; check"]),
        pytest.param(["--score", "/dev/null"], ["not a regular file"], marks=posix),
    ],
)
def test_mistakes_are_named(text_of, tmp_path, arguments, words):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    assert_one_error_line(text_of(*arguments, code=2), *words)


def test_a_single_text_of_a_small_network_takes_one_thread(sample, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for flags in (["--num-samples", 2], ["--stride", 1], []):
        assert asked == [] and sample("--max-new-tokens", 1, *flags)[0] == 0
    assert asked == [1]


def test_start_up_loads_no_compiler(sample, command, tmp_path):
    """PyTorch's compiler and its algebra package take longer to import than torch itself; nothing here needs them."""
    program = (
        f"import sys; sys.argv[1:] = ['--checkpoint', '{MODEL}', '--max-new-tokens', '9']; import generate;"
        "generate.main(); print([m for m in ('torch._dynamo', 'torch._inductor', 'sympy') if m in sys.modules])"
    )
    done = command(written(tmp_path / "script.py", program), env=environment(PYTHONPATH=str(ROOT)))
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
