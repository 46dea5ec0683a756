"""Bad flags: exit 2, one line that names the flag, before any file is made."""

import argparse
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

import convert
import generate
import main
import recipe
import train_tokenizer
from faults import SMALL_RUN, copy_of, files_of, run_here, write_corpus
from helpers import assert_one_error_line, new_run, posix, written
from support.command import UserError, flag_of, run
from training.checks import ADJUSTABLE

# The parser of every command with flags.
PARSERS = {
    "main.py": recipe.make_parser(),
    "generate.py": generate.make_parser(),
    "train_tokenizer.py": train_tokenizer.build_parser(),
    "convert.py": convert.make_parser(),
}
# The flags for which zero or a negative number makes sense, or any text.
ZERO = set("dropout weight_decay warmup seed max_new_tokens temperature top_k min_p beams length_penalty".split())
ZERO |= set("lora_dropout attention_dropout muon_momentum cooldown ema_decay distill epochs".split())
ANY_TEXT = {"prompt", "show", "text"}
WORDS = ["", "x", "nan", "inf", "-inf", "1e999", "0x10", "1,5", "None"]
HUGE = {"N": ["9" * 40, "9" * 5000, "1.5", "1e3", "-" + "9" * 40], "X": ["-1e308"]}


def bad_values(action: argparse.Action) -> list[str]:
    """What a flag must refuse, by its type."""
    kind = getattr(action.type, "metavar", None)  # N for whole numbers, X for others, names for one of these
    if action.dest in ANY_TEXT or action.type is Path:
        return ["--"]
    if kind in HUGE:
        signs = ["0"] * (action.dest not in ZERO) + ["-1"] * (action.dest != "length_penalty")
        return ["--", *WORDS, *HUGE[kind], *signs]
    return ["--", *WORDS] if kind or action.dest == "mirror" else ["--", ""]


FLAGS = {
    f"{command} {action.option_strings[0]}": (parser, action)
    for command, parser in PARSERS.items()
    for action in parser.flags.values()
    if action.nargs != 0 and action.option_strings
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_bad_value_is_refused_by_name(name):
    parser, action = FLAGS[name]
    for value in bad_values(action):
        with pytest.raises(UserError) as error:
            parser.parse_args([f"{action.option_strings[0]}={value}", "a.pth"])
        assert str(error.value).startswith(f"{action.option_strings[0]}: ") and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("main.py", ["my.txt"], ["my.txt", "--data my.txt"]),
        ("main.py", ["--preset", "smal"], ["--preset", "mean small?"]),
        ("generate.py", ["--temp", 0.5], ["--temp", "mean --temperature?"]),
        ("convert.py", ["a.pth", "b.pth", "--forc"], ["--forc", "mean --force?"]),
    ],
)
def test_strangers_are_refused_and_near_misses_named(output_of, tmp_path, script, arguments, words):
    assert_one_error_line(output_of(script, *arguments, code=2), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--num-heads", 3, "--embed-dim", 16], ["--embed-dim 16", "--num-heads 3"]),
        (["--batch-size", 9, "--grad-accum", 2], ["--batch-size 9", "--grad-accum"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--device", "meta"], ["--device meta"]),
        (["--device", "cpu:x"], ["--device cpu:x"]),
        (["--data", "none.txt"], ["--data none.txt"]),
        pytest.param(["my book.txt"], ["for a text, --data 'my book.txt'"], marks=posix),
        (["--data", ".", "--glob", "/*.txt"], ["--glob /*.txt"]),
        (["--data", "long.txt", "synthetic"], ["--data synthetic", "stands alone"]),
        (["--preset", "tune"], ["--preset tune", "needs --init-from"]),
        (["--preset", "lora", "--init-from", "a"], ["--preset lora", "--lora-rank"]),
        (["--out", "model.pt"], ["--out model.pt"]),
        (["--out", "model.last.pth"], ["--out model.last.pth"]),
        (["--out", ".pth"], ["--out"]),
        pytest.param(["--max-seq", 7000, "--batch-size", 1048576], ["GiB", "--batch-size"], marks=posix),
        pytest.param(["--embed-dim", 9999, "--num-layers", 1024], ["GiB", "--embed-dim"], marks=posix),
        (["--max-seq", 2000], ["--max-seq"]),
        (["--optimizer", "adamw", "--muon-lr", 0.1], ["--muon-lr does nothing", "--optimizer adamw: leave"]),
        (["--init-from", "a", "--lora-rank", 2, "--weight-decay", 1], ["--weight-decay does nothing", "--lora-rank"]),
        (["--init-from", "a.pth", "--out", "./a.pth"], ["is the base", "another --out"]),
    ],
)
def test_flags_that_do_not_go_together_make_no_file(output_of, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(main, "train", None)
    text = tmp_path / "long.txt"
    text.write_text("abcdefghij" * (2000 if "GiB" in words else 100))
    assert_one_error_line(output_of("main.py", "--data", text, "--device", "cpu", *arguments, code=2), *words)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["long.txt"]


def test_a_tilde_is_the_home_folder():
    assert recipe.parse_flags(["--preset", "tiny", "--data=~/b"])[0].data == [str(Path.home() / "b")]
    assert convert.make_parser().parse_args(["a.pth", "--lora=~/b.pth"]).lora == Path.home() / "b.pth"


def test_of_a_text_too_short_nothing_else_is_said(output_of):
    """A warning of the question mark, which only the validation part has, came first."""
    written(Path("a.txt"), "To be, or not to be: that is the question, is it?")
    assert re.fullmatch("error: .* needs 65 .* 44: .* --max-seq\n", output_of("main.py", "--data", "a.txt", code=2))


# --- On resume ---------------------------------------------------------------------------------------------------

CHANGED = dict(tokenizer="other.json", preset="base", max_seq=16, embed_dim=16, num_heads=1)
CHANGED |= dict(num_layers=2, dropout=0.3, batch_size=8, optimizer="adamw", weight_decay=0.5)
CHANGED |= dict(grad_clip=3.0, seed=5, schedule="cosine", attention_dropout=0.3, init="sinusoid", windows="random")
CHANGED |= dict(documents="lines", glob="*.md", muon_momentum=0.5, ema_decay=0.9, distill=0.5, epochs=3.0)
CHANGED |= dict(gelu="tanh", bias=False, tie_embeddings=True)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("unfinished"))
    run_here(folder, *SMALL_RUN, "--steps", 4, "--stop-at", 2)
    return folder


@pytest.mark.parametrize("name", CHANGED)
def test_a_flag_that_contradicts_the_resumed_run_is_named(unfinished, tmp_path, output_of, name):
    copy_of(unfinished, tmp_path)
    before = files_of(tmp_path)
    value = CHANGED[name]
    flags = [flag_of(name if value else f"no_{name}")] if isinstance(value, bool) else [flag_of(name), value]
    errors = output_of("main.py", "--resume", *flags, code=2)
    assert_one_error_line(errors, f"{flag_of(name)} {value} contradicts", "--out")
    assert files_of(tmp_path) == before


def test_a_text_that_was_moved_is_taken_and_another_is_not(unfinished, tmp_path, output_of):
    copy_of(unfinished, tmp_path)
    (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    assert_one_error_line(output_of("main.py", "--resume", "--data", "synthetic", code=2), "is not the text")
    output_of("main.py", "--resume", "--data", "moved.txt")


def test_every_setting_is_either_adjustable_or_compared():
    names = set(PARSERS["main.py"].flags)
    assert names - ADJUSTABLE == CHANGED.keys() | {n for n in names if n.startswith("lora")} | {"init_from"}


def test_a_resume_of_nothing_leaves_nothing(tmp_path, output_of):
    (tmp_path / "checkpoints").mkdir()
    assert_one_error_line(output_of("main.py", "--resume", code=2), "--resume: there is no run")
    assert not any((tmp_path / "checkpoints").iterdir())


def test_the_precision_is_chosen_once_unless_a_flag_says_otherwise(tmp_path, monkeypatch):
    """A run begun with `auto` goes on in what that stood for, on a machine too that would have chosen otherwise."""
    for hardware_has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=hardware_has_it: {"avx512_bf16": has})
        monkeypatch.setattr("support.device.bfloat16_is_faster", lambda: True)
        if hardware_has_it:
            run_here(write_corpus(tmp_path), *SMALL_RUN, "--dtype", "auto", "--steps", 4, "--stop-at", 2)
            monkeypatch.chdir(tmp_path)
        assert new_run("--resume").dtype == torch.bfloat16
        assert new_run("--resume", "--dtype", "auto").dtype == expected
        assert new_run("--resume", "--dtype", "float32").dtype == torch.float32


# --- An output that cannot be written ----------------------------------------------------------------------------


linux = pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux has /proc")
not_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")


@pytest.mark.parametrize(
    "out, words",
    [
        ("text.txt/model.pth", ["text.txt"]),
        ("a" * 300 + ".pth", ["too long"]),
        ("a" * 230 + ".pth", ["too long", "--out"]),  # as such it fits, what is written beside it does not
        ("folder.pth", ["--out folder.pth must name a file"]),
        pytest.param("/proc/nowhere/model.pth", ["/proc/nowhere"], marks=linux),
        pytest.param("locked/model.pth", ["--out", "locked"], marks=not_root),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_training(in_process, tmp_path, out, words):
    write_corpus(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    code, output, errors = in_process("main.py", *SMALL_RUN, "--steps", 2, "--out", out)
    assert code in (1, 2)
    assert_one_error_line(errors, *words)
    assert "step" not in output


@posix
@pytest.mark.parametrize("out", ["check points/a b.pth", "it's.pth", "$HOME.pth", "-x.pth"])
def test_suggested_commands_are_quoted_for_the_shell(output_of, tmp_path, out):
    """What a run tells to type is the command that it means, even of a name that looks like a flag."""
    write_corpus(tmp_path)
    stopped = output_of("main.py", *SMALL_RUN, "--steps", 4, "--stop-at", 2, f"--out={out}")
    (resume,) = re.findall(r"continue with: python (.*--resume.*?)(?: \(|$)", stopped, re.MULTILINE)
    ended = output_of(*shlex.split(resume))
    sample, look = re.findall(r"(?:sample from it|look into it) with: +python (.*)", ended)
    assert output_of(*shlex.split(sample), "--max-new-tokens", 3)
    assert ".html" in output_of(*shlex.split(look))


@pytest.mark.parametrize(
    "error, expected",
    [
        (MemoryError(), SystemExit),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), SystemExit),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes."), SystemExit),
        (RuntimeError("a bug"), RuntimeError),  # must show itself as one
    ],
)
def test_running_out_of_memory_is_one_line_and_a_bug_is_not(capsys, error, expected):
    def command():
        raise error

    with pytest.raises(expected) as end:
        run(command)
    if expected is SystemExit:
        assert end.value.code == 1
        assert_one_error_line(capsys.readouterr().err, "not enough memory", "--batch-size")
