"""The command as a user runs it: what it prints where, and which mistakes it names."""

import os
import re
import subprocess
import sys

import pytest
import torch

from conftest import environment
from formats.checkpoint import save_model
from helpers import ROOT, assert_one_error_line
from sampling.explain import Explainer
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


def text_of(sample, *arguments) -> str:
    code, output, errors = sample(*arguments)
    assert code == 0, errors
    return output


def test_text_goes_to_stdout_and_the_rest_to_stderr(sample):
    code, output, errors = sample("--prompt", "abc", "--max-new-tokens", 20, "--seed", 3)
    assert code == 0 and output.startswith("abc") and output.endswith("\n") and len(output) == 24
    assert re.fullmatch(r"20 tokens, [\d,]+ tokens/s, seed 3\n", errors)


def test_without_a_seed_the_one_drawn_is_shown(sample):
    _, output, errors = sample("--max-new-tokens", 30)
    assert text_of(sample, "--max-new-tokens", 30, "--seed", errors.split()[-1]) == output


def test_several_samples_are_the_single_ones_with_the_next_seeds(sample):
    output = text_of(sample, "--prompt", "ab", "--num-samples", 3, "--seed", 5, "--max-new-tokens", 12)
    singles = [text_of(sample, "--prompt", "ab", "--seed", seed, "--max-new-tokens", 12) for seed in (5, 6, 7)]
    assert output == "".join(f"--- text {i + 1} (seed {5 + i})\n{text}" for i, text in enumerate(singles))


def test_prompt_file_gives_every_line_the_text_it_gets_alone(sample, tmp_path):
    prompts = ["a", "bcdefgh abcdefg", "é b"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    output = text_of(sample, "--prompt-file", "prompts.txt", "--seed", 5, "--max-new-tokens", 12)
    singles = [
        text_of(sample, "--prompt", prompt, "--seed", 5 + i, "--max-new-tokens", 12) for i, prompt in enumerate(prompts)
    ]
    assert output == "".join(f"--- text {i + 1} (seed {5 + i})\n{text}" for i, text in enumerate(singles))


def test_stop_string_ends_the_text_and_is_not_printed(sample):
    whole = text_of(sample, "--prompt", "ab", "--seed", 1, "--max-new-tokens", 40)[2:-1]
    stop = whole[10:12]
    cut = text_of(sample, "--prompt", "ab", "--seed", 1, "--max-new-tokens", 40, "--stop", "never", "--stop", stop)
    assert cut == "ab" + whole[: whole.index(stop)] + "\n"


def test_a_new_line_may_be_written_as_backslash_n(sample):
    found = text_of(sample, "--seed", 2, "--max-new-tokens", 200, "--stop", r"\n")
    assert found == text_of(sample, "--seed", 2, "--max-new-tokens", 200).split("\n")[0] + "\n"


def test_beams_print_the_best_with_scores(sample):
    output = text_of(sample, "--prompt", "ab", "--beams", 4, "--n-best", 2, "--max-new-tokens", 5)
    scores = [float(score) for score in re.findall(r"score (-[\d.]+), log-probability -", output)]
    assert len(scores) == 2 and scores[0] >= scores[1]
    single = text_of(sample, "--prompt", "ab", "--beams", 4, "--max-new-tokens", 5)
    assert output.split("\n")[1] == single[:-1]


def test_greedy_is_the_same_for_every_seed(sample):
    texts = {text_of(sample, "--temperature", 0, "--seed", seed, "--max-new-tokens", 20) for seed in (1, 2)}
    assert len(texts) == 1


def test_explain_shows_the_filters_at_work(sample):
    arguments = ("--top-k", 3, "--top-p", 0.9, "--max-new-tokens", 2, "--seed", 1, "--prompt", "ab")
    code, output, errors = sample(*arguments, "--explain")
    assert code == 0 and output == text_of(sample, *arguments)
    tables = re.split(r"^token \d+\n", errors, flags=re.MULTILINE)[1:]
    assert len(tables) == 2
    for table, character in zip(tables, output[2:4], strict=True):
        header, *rows = [line for line in table.splitlines() if line.startswith("  ")]
        assert header.split() == ["token", "model", "temperature", "top-k", "top-p"]
        (sampled,) = [row for row in rows if row.endswith(" <- sampled")]
        assert sampled.split("'")[1] == character.replace("\n", "\\n")
        kept = [row.removesuffix(" <- sampled").split()[-2] for row in rows[:-1]]  # the column after top-k
        assert sum(cell != "-" for cell in kept) == 3
        assert rows[-1].split()[:-1] == ["(candidates)", "11", "11", "3"]


def test_explain_table_is_aligned_and_exact(capsys):
    tokenizer = CharTokenizer.from_text("ab")
    before = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).log()
    Explainer(tokenizer)([("model", before), ("top-k", torch.tensor([[0, 0, 0.0, 1]]).log())], [3])
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:4] == [
        "  token          model   top-k",
        "  'a'           0.5000       -",
        "  'b'           0.5000  1.0000 <- sampled",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", -1], ["--temperature", "at least 0"]),
        (["--temperature", "nan"], ["--temperature"]),
        (["--top-k", -1], ["--top-k"]),
        (["--top-p", 0], ["--top-p", "more than 0"]),
        (["--top-p", 1.1], ["--top-p", "at most 1"]),
        (["--min-p", 2], ["--min-p"]),
        (["--repetition-penalty", 0], ["--repetition-penalty"]),
        (["--num-samples", 0], ["--num-samples"]),
        (["--stop", ""], ["--stop", "empty"]),
        (["--stride", 9], ["--stride", "8"]),
        (["--stride", 0], ["--stride", "at least 1"]),
        (["just a prompt"], ["--prompt 'just a prompt'"]),
        (["--beams", 2, "--n-best", 3], ["--n-best"]),
        (["--beams", 2, "--num-samples", 2], ["--num-samples", "--beams"]),
        (["--beams", 2, "--temperature", 1], ["--beams makes no use of --temperature"]),
        (["--explain", "--num-samples", 2], ["--explain"]),
        (["--prompt", "a", "--prompt-file", "p"], ["--prompt-file"]),
        (["--prompt-file", "missing.txt"], ["missing.txt", "no such file"]),
        (["--prompt-file", "empty.txt"], ["no prompt"]),
        (["--prompt-file", "latin.txt"], ["UTF-8"]),
    ],
)
def test_mistakes_are_named(sample, tmp_path, arguments, words):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    code, output, errors = sample(*arguments)
    assert code == 2 and output == ""
    assert_one_error_line(errors, *words)


def test_top_k_above_the_vocabulary_means_all(sample):
    arguments = ("--seed", 1, "--max-new-tokens", 20)
    assert text_of(sample, *arguments, "--top-k", 1000) == text_of(sample, *arguments)


def test_reader_that_closes_the_pipe_ends_the_command_quietly(sample, tmp_path):
    sample("--max-new-tokens", 1)  # the checkpoint lies in tmp_path
    command = [sys.executable, str(ROOT / "generate.py"), "--checkpoint", MODEL, "--max-new-tokens", "1000000"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert len(os.read(process.stdout.fileno(), 5)) > 0  # text arrives long before the end
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


def test_start_up_loads_no_compiler(sample, tmp_path):
    """PyTorch's compiler and its algebra package take longer to import than torch itself; nothing here needs them."""
    sample("--max-new-tokens", 1)
    program = (
        "import sys; sys.argv[1:] = ['--checkpoint', 'model.pth', '--max-new-tokens', '9']; import generate;"
        "generate.main(); print([m for m in ('torch._dynamo', 'torch._inductor', 'sympy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
