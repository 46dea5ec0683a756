"""Text in and text out: odd corpora, odd prompts, and every kind of stdout."""

import os
import subprocess
import sys

import pytest

from conftest import environment
from faults import OUT, SMALL_RUN, TEXT, copy_of, run_here, write_corpus
from helpers import ROOT, assert_one_error_line, posix

SAMPLE = "$RUN generate.py --checkpoint checkpoints/tiny_decoder.pth --max-new-tokens"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("trained"))
    run_here(folder, *SMALL_RUN, "--steps", 2)
    return folder


def shell(folder, line: str, **changes: str | None) -> subprocess.CompletedProcess:
    """A line for the shell, in which $RUN is Python with the repository's folder before the script's name. changes: of
    the environment; None removes a variable, FLAGS is for Python itself."""
    env = {name: value for name, value in {**environment(), **changes}.items() if value is not None}
    line = "set -o pipefail; " + line.replace("$RUN ", f"'{sys.executable}' $FLAGS '{ROOT}'/")
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 60}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, **options)


# --- Corpora -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode(),
        b"nul \x00 bytes \x00 and \x1b[2J escapes\n" * 30,
        "\N{GRINNING FACE}\N{COMBINING ACUTE ACCENT}\u202e!\n".encode() * 99,
        b"a" * 500,
        b"abc\n" * 40,  # too short to compare its last tenth with another
    ],
)
def test_an_odd_corpus_trains_and_samples(output_of, tmp_path, content):
    (tmp_path / "odd.txt").write_bytes(content)
    output_of("main.py", "--data", "odd.txt", *SMALL_RUN[2:], "--steps", 1)
    output = output_of("generate.py", "--max-new-tokens", 300, "--seed", 1)
    assert len(output) >= 300 and "\ufeff" not in output and "\r" not in output


# --- Prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, warned",
    [
        ("T" * 5000, ""),
        ("caf\u00e9 \N{GRINNING FACE}", "U+00E9"),
        ("T\udcff\ud800", "U+DCFF"),  # what Python makes of bytes that are not UTF-8
        ("T\x00\n\x1b", "U+0000"),
    ],
)
def test_any_prompt_works_and_unknown_characters_are_named(trained, in_process, tmp_path, prompt, warned):
    copy_of(trained, tmp_path)
    code, output, errors = in_process("generate.py", "--max-new-tokens", 5, "--prompt", prompt)
    assert code == 0 and "Traceback" not in errors
    shown = prompt.encode("utf-8", "backslashreplace").decode()
    assert output.startswith((prompt, shown))
    assert warned in errors and errors.count("warning") == bool(warned)


@posix
@pytest.mark.parametrize("encoding, read", [(None, "U+00E9"), ("latin-1", "U+00C3")])
def test_pipes_are_utf8_whatever_the_locale_unless_the_user_says_otherwise(trained, encoding, read):
    """In a locale of another encoding, an é from a pipe was two characters, and into one it was \\xe9."""
    line = rf"printf '\xc3\xa9' | {SAMPLE} 0 --prompt -"
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": None, "FLAGS": "-X utf8=0"}
    done = shell(trained, line, PYTHONIOENCODING=encoding, **locale)
    assert done.returncode == 0 and done.stdout == "é\n" and read in done.stderr


# --- Stdout ------------------------------------------------------------------------------------------------------


@posix
def test_a_reader_that_has_enough_ends_the_text_quietly(trained):
    done = shell(trained, f"{SAMPLE} 100000 --stride 4 | head -c 3")
    assert (done.returncode, len(done.stdout)) == (0, 3)
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr


@posix
@pytest.mark.slow
def test_closed_streams_are_no_reason_to_fail(trained):
    done = shell(trained, f"{SAMPLE} 5 --prompt - <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@posix
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_exit_1_with_the_reason(trained):
    done = shell(trained, f"{SAMPLE} 5 > /dev/full")
    assert done.returncode == 1
    assert_one_error_line(done.stderr, "No space left")
    assert "Exception ignored" not in done.stderr


@posix
@pytest.mark.slow
def test_training_into_a_closed_pipe_stops_after_saving(trained, tmp_path):
    copy_of(trained, tmp_path)
    flags = " ".join(map(str, [*SMALL_RUN, "--steps", 100_000, "--eval-every", 1, "--out", OUT.best]))
    done = shell(tmp_path, f"$RUN main.py {flags} | head -n 8")
    assert done.returncode == 1
    assert_one_error_line(done.stderr, "Broken pipe", "saved at step", "--resume")
    assert (tmp_path / OUT.last).exists()
