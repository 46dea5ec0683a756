"""Random command lines: never a traceback, never a hang, never a changed earlier file.

They are the same on every run (`derandomize`), so a failure can be repeated.
"""

import contextlib
import functools
import os
import signal
import tempfile
from pathlib import Path

import pytest

import data_setup
from faults import OUT, SMALL_RUN, copy_of, files_of, run_here, write_corpus
from training.state import read_state

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
WHOLE_CASE = 20  # seconds that one case may take
# A failure is reported as it is: shrinking one can take an hour.
SETTINGS = {"phases": [hypothesis.Phase.generate], "derandomize": True, "deadline": None, "database": None}
SETTINGS["suppress_health_check"] = [hypothesis.HealthCheck.too_slow]


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


ODD = ["", "0", "-1", "nan", "inf", "1e400", "9" * 30, "--", "-", "auto", "None", "\u00e9", "\udcff", " "]
WORD = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_characters="\0/"), max_size=5))


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


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_random_command_lines(template, in_process, monkeypatch, count):
    synthetic = functools.partial(data_setup.synthetic_corpus, 3000)
    monkeypatch.setattr(data_setup, "synthetic_corpus", synthetic)  # a shorter one, made once
    monkeypatch.setattr(data_setup, "fetch", lambda *_: template / "text.txt")  # no network
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands, on a disk that may be slow
    tried = []

    @hypothesis.settings(max_examples=count, **SETTINGS)
    @hypothesis.given(command_lines())
    def check(line):
        script, arguments = line
        with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch, no_hang(line):
            folder = copy_of(template, Path(folder))
            patch.chdir(folder)
            before = files_of(folder)
            code, _, errors = in_process(script, *arguments)
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
