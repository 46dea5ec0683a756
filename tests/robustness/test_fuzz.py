"""Random command lines and random damage: never a traceback, never a hang, never a changed earlier file. Each
test states how many cases it tries; the slow ones try twenty times as many. The cases are the same on every run
(`derandomize`), so a failure can be repeated."""

import contextlib
import functools
import importlib
import io
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

import data_setup
from faults import OUT, SMALL_RUN, copy_of, files_of, run_here, write_corpus
from support import command as cli
from training.state import read_state

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
WHOLE_CASE = 20  # seconds that one case may take


def tries(count: int):
    """A test's number of cases; twenty times as many if it is slow."""
    return pytest.mark.parametrize("count", [count, pytest.param(20 * count, marks=pytest.mark.slow)])


def cases(count: int):
    """hypothesis's settings for so many cases. A failure is reported as it is: shrinking one can take an hour."""
    health = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
    return hypothesis.settings(
        phases=[hypothesis.Phase.generate],
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=health,
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with an unfinished run."""
    folder = write_corpus(tmp_path_factory.mktemp("template"))
    run_here(folder, *SMALL_RUN, "--steps", 4, "--eval-every", 2, "--stop-at", 2)
    return folder


@contextlib.contextmanager
def no_hang(line):
    """Fail what takes longer than WHOLE_CASE seconds, where there are alarms."""

    def expired(*_):
        raise AssertionError(f"no end after {WHOLE_CASE} s: {line}")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(WHOLE_CASE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- Command lines -----------------------------------------------------------------------------------------------

WORD = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "nan", "inf", "1e400", "9" * 30, "--", "-", "auto", "None", "\u00e9", "\udcff", " "]
    ),
    st.text(st.characters(exclude_characters="\0/"), max_size=5),
)


def one_of(*values):
    """Mostly a value that makes sense, now and then any word."""
    return st.one_of(*[st.sampled_from([str(value) for value in values])] * 8, WORD)


FILES = {"--data": one_of("synthetic", "text.txt", "none.txt"), "--preset": one_of("tiny", "small", "auto")}
FILES |= {"--out": one_of("checkpoints/tiny_decoder.pth", "other.pth"), "--init-from": one_of(OUT.best, "none.pth")}
SHAPE = {"--max-seq": one_of(1, 2, 8), "--embed-dim": one_of(2, 8, 12), "--num-heads": one_of(1, 2, 3)}
SHAPE |= {"--num-layers": one_of(1, 2), "--gelu": one_of("exact", "tanh"), "--init": one_of("normal", "sinusoid")}
STEPS = {"--steps": one_of(1, 2, 3), "--stop-at": one_of(1, 2, 9), "--eval-every": one_of(1, 2, 1000)}
STEPS |= {"--batch-size": one_of(1, 3, 4), "--grad-accum": one_of(1, 2, 4), "--patience": one_of(1, 2, 5)}
RATES = {"--lr": one_of(1e-30, 0.01, 1, 100), "--muon-lr": one_of(1e-9, 0.02, 50), "--warmup": one_of(0, 2, 10**9)}
RATES |= {"--weight-decay": one_of(0, 1, 100), "--cooldown": one_of(0, 0.5, 1), "--ema-decay": one_of(0, 0.5, 0.99)}
RATES |= {"--grad-clip": one_of(1e-30, 1, 1e30), "--optimizer": one_of("adamw", "muon"), "--dropout": one_of(0, 0.9)}
OTHER = {"--seed": one_of(0, 2**31), "--dtype": one_of("float32", "bfloat16"), "--device": one_of("cpu", "cuda:9")}
TRAIN = {**FILES, **SHAPE, **STEPS, **RATES, **OTHER}
SAMPLE = {"--checkpoint": one_of(OUT.best, OUT.last, "text.txt"), "--prompt": st.text(max_size=12)}
SAMPLE |= {"--prompt-file": one_of("text.txt", "none.txt"), "--score": one_of("text.txt", "none.txt")}
SAMPLE |= {"--max-new-tokens": one_of(0, 1, 20), "--stop": st.text(max_size=3), "--num-samples": one_of(1, 3)}
SAMPLE |= {"--temperature": one_of(0, 1e-30, 0.8, 1e6), "--top-k": one_of(0, 1, 5, 10**9), "--min-p": one_of(0, 0.5, 1)}
SAMPLE |= {"--top-p": one_of(1e-30, 0.5, 1), "--repetition-penalty": one_of(1e-3, 1, 1.3, 1e6)}
SAMPLE |= {"--seed": one_of(0, 2**62), "--beams": one_of(0, 1, 3), "--n-best": one_of(1, 2, 3)}
SAMPLE |= {"--length-penalty": one_of(-10, 0, 1, 10), "--stride": one_of(1, 3, 8, 9999), "--device": one_of("cpu")}


def command_lines():
    """A script and its arguments: always small sizes, then any of the flags, in which the later one counts."""
    pairs = {
        script: st.lists(st.sampled_from(sorted(flags)).flatmap(lambda f, flags=flags: st.tuples(st.just(f), flags[f])))
        for script, flags in (("main.py", TRAIN), ("generate.py", SAMPLE))
    }
    small = ["--data", "synthetic", *map(str, SMALL_RUN[2:]), "--steps", "2"]
    first = {"new": ("main.py", small), "resumed": ("main.py", ["--resume"]), "text": ("generate.py", ["--seed", "1"])}
    return st.sampled_from(sorted(first)).flatmap(
        lambda name: pairs[first[name][0]].map(
            lambda chosen: (first[name][0], [*first[name][1], *(word for pair in chosen for word in pair)])
        )
    )


def run_command(folder: Path, script: str, arguments: list[str]) -> tuple[int, str]:
    """A command in this process and in `folder`: its exit code and stderr."""
    here, argv, show = os.getcwd(), sys.argv, warnings.showwarning
    sys.argv = [script, *arguments]
    os.chdir(folder)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors), no_hang(sys.argv):
            cli.run(importlib.import_module(script.removesuffix(".py")).main)
    except SystemExit as stop:
        return stop.code or 0, errors.getvalue()
    finally:
        os.chdir(here)
        sys.argv, warnings.showwarning = argv, show


@tries(20)
def test_random_command_lines(template, monkeypatch, count):
    synthetic = functools.partial(data_setup.synthetic_corpus, 3000)
    monkeypatch.setattr(data_setup, "synthetic_corpus", synthetic)  # a shorter one, made once
    monkeypatch.setattr(data_setup, "fetch", lambda *_: template / "text.txt")  # no network
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands, on a disk that may be slow
    tried = []

    @cases(count)
    @hypothesis.given(command_lines())
    def check(line):
        script, arguments = line
        with tempfile.TemporaryDirectory() as folder:
            folder = copy_of(template, Path(folder))
            before = files_of(folder)
            code, errors = run_command(folder, script, arguments)
            tried.append(code)
            assert code in (0, 1, 2, 3), errors
            said = [text for text in errors.splitlines() if text.startswith("error:")]
            assert len(said) == (code != 0) and "Traceback" not in errors, errors
            after = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
            if code == 2 or "--resume" not in arguments:
                assert all(content in after for content in before.values()), "an earlier file was changed"
            for path in folder.rglob("*.last.pth"):
                read_state(path)

    check()
    assert len(tried) >= count and {0, 2} <= set(tried)
