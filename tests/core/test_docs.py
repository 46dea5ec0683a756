"""What README and docs say: every command parses; every flag, linked file, promised function and test exists."""

import argparse
import importlib
import re
import shlex

import pytest

import generate
import recipe
from helpers import ROOT, SMALL_NETWORK, written
from support.command import Parser

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SCRIPTS = ("main", "generate", "train_tokenizer", "convert", "data_setup", "bench")
COMMAND = re.compile(r"\b(?:python|torchrun\b.*?) (?:\.\./)?(\w+)\.py\b(.*)")
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OF_OTHERS = {"--standalone", "--nproc-per-node", "--local-addr", "--max-restarts", "--rdzv-conf"}  # torchrun's


def fenced_lines(markdown: str) -> list[str]:
    """The lines of its code blocks; those that a backslash continues are joined."""
    blocks = [block for language, block in FENCED.findall(markdown) if language in ("", "sh", "bash")]
    return "".join(blocks).replace("\\\n", " ").splitlines()


def inline_code(markdown: str) -> list[str]:
    """What stands between single backticks, without line breaks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCED.sub("", markdown))]


def commands(pieces: list[str]) -> list[tuple[str, list[str]]]:
    """Script and arguments of every command of ours in these pieces of code."""
    found = [COMMAND.search(piece) for piece in pieces]
    return [(hit[1], shlex.split(re.sub(r"\)( &)?$", "", hit[2]), comments=True)) for hit in found if hit]


ALL_COMMANDS = [
    pytest.param(script, arguments, id=f"{page.name}: {script}.py {' '.join(arguments)}"[:100])
    for page in PAGES
    for text in [page.read_text(encoding="utf-8")]
    for script, arguments in commands(fenced_lines(text) + inline_code(text))
]


class Parsed(Exception):
    """The command line was accepted."""


def parse(script: str, arguments: list[str], monkeypatch) -> None:
    """Let a script's own parser read a command line, and nothing else happen."""
    if script == "main":
        recipe.parse_flags(arguments)
    elif script == "generate":
        generate.parse_settings(arguments)
    else:
        module = importlib.import_module(script)

        def parse_and_leave(parser, *_):
            argparse.ArgumentParser.parse_args(parser, arguments)
            raise Parsed

        monkeypatch.setattr(Parser, "parse_args", parse_and_leave)
        with pytest.raises(Parsed):
            module.main()


def test_the_pages_hold_commands_of_every_script():
    assert {command.values[0] for command in ALL_COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize("script, arguments", ALL_COMMANDS)
def test_a_command_parses(script, arguments, monkeypatch):
    if "--help" in arguments:
        with pytest.raises(SystemExit) as left:
            parse(script, arguments, monkeypatch)
        assert left.value.code == 0
    else:
        parse(script, arguments, monkeypatch)


def test_a_command_that_does_not_exist_would_be_noticed(monkeypatch):
    for line in ("python main.py --hop 3", "python convert.py --lora x", "python bench.py nothing"):
        ((script, arguments),) = commands([line])
        with pytest.raises(Exception, match="--help lists the flags"):
            parse(script, arguments, monkeypatch)


def test_every_flag_that_is_named_exists(in_process):
    pages = [("data_setup.py", "gutenberg"), *((f"{script}.py",) for script in SCRIPTS)]
    helps = [in_process(*page, "--help")[1] for page in pages]
    known = OF_OTHERS | set(re.findall(r"--[a-z][a-z-]*", " ".join(helps)))
    for page in PAGES:
        spans = inline_code(page.read_text(encoding="utf-8"))
        named = {flag for span in spans if span.startswith("--") for flag in re.findall(r"--[a-z][a-z-]*", span)}
        assert named <= known, f"{page.name} names {named - known}"


def test_links_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in anchors, f"{page.name}: {target}"
            elif "://" not in target:
                assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_the_first_four_commands_of_the_readme_run_and_its_lines_of_python(output_of, tmp_path, capsys):
    written(tmp_path / "my.txt", "ROMEO:\nIs the day so young?\n\n" * 40)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    four = commands(fenced_lines(readme))[:4]
    kinds = [(script, "--resume" in arguments) for script, arguments in four]
    assert kinds == [("main", False), ("generate", False), ("main", True), ("main", False)]
    small = ["--steps", "4", "--eval-every", "2", *SMALL_NETWORK]
    extra = [["--data", "my.txt", *small, "--stop-at", "2"], ["--max-new-tokens", "5"], [], small]
    said = ["saved at step 2 of 4", "ROMEO:", "resuming at step 2", "best validation loss"]
    for (script, arguments), more, words in zip(four, extra, said, strict=True):
        assert words in output_of(f"{script}.py", *arguments, *more)
    assert (tmp_path / "checkpoints" / "tiny_decoder.1.pth").exists()  # the earlier run, kept by the fourth
    exec(*[block for language, block in FENCED.findall(readme) if language == "python"], {})
    assert len(capsys.readouterr().out) > 200


# --- Promises ----------------------------------------------------------------------------------------------------

PROMISES = ROOT / "docs" / "promises.md"
NAMED = re.compile(r"`([\w./]+)`:((?: `[\w.]+`,?)+)")  # `file`: `name`, `name`


def test_promises_name_functions_and_tests_that_exist():
    """Files are named by their path, those of tests by their name alone."""
    text = " ".join(PROMISES.read_text(encoding="utf-8").split())
    assert len(NAMED.findall(text)) > 40
    for file, names in NAMED.findall(text):
        (path,) = ROOT.glob(file) if "/" in file or not file.startswith("test_") else (ROOT / "tests").rglob(file)
        for name in re.findall(r"(\w+)`", names):
            assert re.search(rf"^ *(def|class) {name}\b|^{name} = ", path.read_text("utf-8"), re.M), f"{file}: {name}"
