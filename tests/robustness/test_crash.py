"""Crash safety: whatever operation fails and whenever the process dies, what was announced as saved can be loaded."""

import errno
import importlib
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from faults import (
    OUT,
    SMALL_RUN,
    Child,
    Faults,
    announced_step,
    assert_nothing_lost,
    copy_of,
    failing,
    files_of,
    flip_a_bit,
    train,
    write_corpus,
)
from formats.checkpoint import TRAINING, read_checkpoint
from helpers import assert_one_error_line, assert_same_state, read_metrics
from support import durable
from training.distributed import ALONE
from training.state import RunPaths, open_files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to be fast")
RUN = [*SMALL_RUN, "--steps", 3, "--eval-every", 1]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A folder with a finished run, whose files a second run must keep."""
    folder = write_corpus(tmp_path_factory.mktemp("earlier"))
    train(folder, *RUN, "--seed", 7)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A folder with the run that every interrupted and resumed one must equal."""
    folder = write_corpus(tmp_path_factory.mktemp("uninterrupted"))
    train(folder, *RUN)
    return folder


def count_operations(earlier, tmp_path) -> list[str]:
    """The operations of an undisturbed run, in order."""
    log = tmp_path / "operations.txt"
    faults = Faults(0, lambda: None, os.open(log, os.O_WRONLY | os.O_CREAT))
    train(copy_of(earlier, tmp_path / "counted"), *RUN, prepare=faults.install)
    return log.read_text().splitlines()


FAILURES = {"no space": failing(errno.ENOSPC), "input/output error": failing(errno.EIO), "death": lambda: os._exit(9)}


def test_a_failing_operation_loses_nothing(earlier, tmp_path):
    """The first operation of each sort is death, the last write and the last rename meet a full disk."""
    names = count_operations(earlier, tmp_path)
    check_every(earlier, tmp_path / "death", "death", sorted(names.index(name) + 1 for name in set(names)), names)
    last = [len(names) - names[::-1].index(name) for name in ("write", "replace")]
    check_every(earlier, tmp_path / "full", "no space", last, names)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAILURES)
def test_every_failing_operation_loses_nothing(earlier, tmp_path, kind):
    """N = 1, 2, … to the last operation of the run and one beyond, which must succeed."""
    names = count_operations(earlier, tmp_path)
    check_every(earlier, tmp_path, kind, range(1, len(names) + 2), names)


def check_every(earlier, tmp_path, kind, numbers, names):
    expected_failure = 9 if kind == "death" else 1
    for nth in numbers:
        folder = copy_of(earlier, tmp_path / f"fault{nth}")
        child = Child(folder, "main.py", *RUN, prepare=Faults(nth, FAILURES[kind]).install)
        code = child.wait()
        name = names[nth - 1] if nth <= len(names) else "none"
        assert code == (0 if name == "none" else expected_failure), (nth, name, child.stderr)
        assert_nothing_lost(folder, child.stdout, files_of(earlier))
        if code == 1:
            assert_one_error_line(child.stderr, os.strerror(errno.ENOSPC if kind == "no space" else errno.EIO))
            assert not list(folder.rglob("*.tmp")), "a failed write left its temporary file"


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_run_that_died_resumes_to_the_same_bits(uninterrupted, tmp_path, share):
    names = count_operations(write_corpus(tmp_path / "empty"), tmp_path)
    folder = write_corpus(tmp_path / "run")
    train(folder, *RUN, prepare=Faults(int(share * len(names)), lambda: os._exit(9)).install, code=9)
    train(folder, "--resume")
    assert_same_state(folder / OUT.last, uninterrupted / OUT.last)
    assert [line["step"] for line in read_metrics(folder / OUT.metrics)] == [1, 2, 3], "each evaluation has one line"
    assert (folder / OUT.story).read_bytes() == (uninterrupted / OUT.story).read_bytes()


@pytest.mark.parametrize("moments", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_loses_nothing_announced(tmp_path, moments):
    folder, random, reached, output = write_corpus(tmp_path), Random(moments), [], ""
    for number in range(moments):
        resume = ["--resume"] if (folder / OUT.last).exists() or (folder / OUT.previous).exists() else []
        child = Child(folder, "main.py", *(resume or [*SMALL_RUN, "--steps", 10_000, "--eval-every", 1]))
        wait_for(lambda child=child, number=number: announced_step(child.stdout) or (number % 2 == 0 and child.stdout))
        time.sleep(random.uniform(0, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.stderr
        output += child.stdout
        reached.append(assert_nothing_lost(folder, output))
    assert reached == sorted(reached) and reached[-1] > 0
    # Killed between its first model and its first state, a run cannot be resumed: the next one keeps it under a number.
    whole = re.compile(r"tiny_decoder(\.\d+)?\.(pth|last\.pth|previous\.pth|metrics\.jsonl|story\.jsonl|lock)")
    others = [path.name for path in (tmp_path / "checkpoints").iterdir() if not whole.fullmatch(path.name)]
    assert len(others) <= 1, "killed writers' files pile up"


def wait_for(condition: Callable[[], object]) -> None:
    """Return once the condition holds, or after 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.parametrize("first_that_fails, beyond", [("new.pth", -1), ("new.last.pth", 100)])
def test_a_full_disk_is_exit_1_with_the_reason(earlier, tmp_path, first_that_fails, beyond):
    """The model does not fit; or it does, and the training state, three times as large, does not."""
    resource = pytest.importorskip("resource")
    folder = copy_of(earlier, tmp_path / "run")
    limit = (folder / OUT.best).stat().st_size + beyond
    prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    child = train(folder, *RUN, "--out", "checkpoints/new.pth", prepare=prepare, code=1)
    assert_one_error_line(child.stderr, first_that_fails, os.strerror(errno.EFBIG), "not saved a training state")
    assert_nothing_lost(folder, child.stdout, files_of(earlier))


def test_the_order_is_write_fsync_rename_fsync_folder(earlier, tmp_path):
    names = count_operations(write_corpus(tmp_path / "empty"), tmp_path)
    one_write = [name for i, name in enumerate(names) if name != "write" or names[i - 1] != "write"]
    best = first = ["open", "write", "fsync", "replace", "fsync folder"]
    last = ["open", "write", "fsync", "replace", "replace", "fsync folder"]  # the old state becomes the previous one
    line = ["open", "write", "fsync"]  # of the story at step 0; of story and metrics at each evaluation
    evaluation = [*line, *best, *line]
    assert one_write == [*line, *evaluation, *first, *evaluation, *last, *evaluation, *last]


def test_a_damaged_state_gives_way_to_the_one_before_with_a_note(uninterrupted, tmp_path):
    folder = copy_of(uninterrupted, tmp_path / "run")
    for _ in range(2):
        flip_a_bit(folder / OUT.last)
        child = train(folder, "--resume")  # of a run that was complete but for its damaged state
        assert f"WARNING: {OUT.last}" in child.stderr and f"{OUT.previous}, step 2" in child.stderr
        assert_same_state(folder / OUT.last, uninterrupted / OUT.last)
        assert RunPaths(folder / OUT.best).read_newest()[2] == folder / OUT.last
        assert [line["step"] for line in read_metrics(folder / OUT.metrics)] == [1, 2, 3]
        assert read_checkpoint(folder / OUT.previous, TRAINING)[0]["training"]["step"] == 2, "a damaged one replaced it"
    for path in (OUT.last, OUT.previous):
        (folder / path).write_bytes(b"")
    assert_one_error_line(train(folder, "--resume", code=2).stderr, str(OUT.last))


def test_a_model_behind_a_link_is_kept_when_the_next_run_writes_there(earlier, tmp_path):
    """The copy was one of the link, so the new model replaced both."""
    folder = copy_of(earlier, tmp_path / "run")
    before = (folder / OUT.best).read_bytes()
    (folder / OUT.best).rename(folder / "real.pth")
    (folder / OUT.best).symlink_to(folder / "real.pth")
    train(folder, *RUN, "--seed", 7)
    assert (folder / "checkpoints/tiny_decoder.1.pth").read_bytes() == before != (folder / "real.pth").read_bytes()


def test_an_earlier_run_is_kept_under_a_number_that_nobody_uses(earlier, tmp_path):
    """Number 1 belongs to a run that has yet to save: it has only the lock."""
    folder = copy_of(earlier, tmp_path / "run")
    before = files_of(folder)
    with open_files(folder / "checkpoints/tiny_decoder.1.pth", ALONE):
        RunPaths(folder / OUT.best).keep_earlier_run()
    after = files_of(folder)
    assert {name.replace("decoder.2.", "decoder."): after[name] for name in after if ".2." in name} == before
    assert [name for name in after if ".2." not in name] == ["tiny_decoder.pth"]


@pytest.mark.parametrize("kind", ["metrics", "story"])
def test_torn_and_foreign_lines_leave_the_metrics(tmp_path, kind):
    path, paths = tmp_path / f"a.{kind}.jsonl", RunPaths(tmp_path / "a.pth")
    odd = b'[1]\n3\n\xff\n{"step": 1e999}\n{"step": 1, "val_loss": NaN}\n{"\xe2\x80\xa8"\n' + b"[" * 200_000
    path.write_bytes(b'{"step": 1}\n' + odd + b'\n{"step": 3}\n{"step": 2}\n{"step": 2}')
    paths.trim_metrics(step=2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_two_runs_on_one_output_the_second_is_refused(tmp_path):
    folder, inside = write_corpus(tmp_path), tmp_path / "second"
    inside.mkdir()
    first = Child(folder, "main.py", *SMALL_RUN, "--steps", 100_000, "--eval-every", 10)
    try:
        wait_for(lambda: announced_step(first.stdout))
        for flags in ([*SMALL_RUN], ["--resume"]):
            second = train(inside, *flags, prepare=lambda: os.chdir(folder), code=2)
            assert_one_error_line(second.stderr, "tiny_decoder.pth", "another process", "--out")
        train(inside, *RUN, "--out", "other.pth", prepare=lambda: os.chdir(folder))
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    steps = ["--stop-at", 100_000, "--steps", announced_step(first.stdout) + 20]
    train(folder, "--resume", *steps)  # the lock has died with its process


@pytest.mark.parametrize("reason", ["a folder", "a text", "no locks"])
def test_a_lock_that_cannot_be_made_says_what_to_do(tmp_path, output_of, monkeypatch, reason):
    """Without locks of the file system, filelock would take a marker file, which outlives a kill."""
    write_corpus(tmp_path)
    if reason == "a folder":
        OUT.lock.mkdir(parents=True)
    elif reason == "a text":
        OUT.lock.parent.mkdir()
        OUT.lock.write_text("mine")
    else:
        fcntl = pytest.importorskip("fcntl")
        monkeypatch.setattr(fcntl, "flock", lambda *_: failing(errno.ENOSYS)())
    errors = output_of("main.py", *RUN, code=1)
    assert_one_error_line(errors, "cannot make the lock file", "tiny_decoder.lock", "another --out")
    assert reason != "a text" or OUT.lock.read_text() == "mine"


def test_a_link_into_a_folder_that_cannot_be_written_is_found_before_training(tmp_path, in_process, monkeypatch):
    write_corpus(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    Path("a.pth").symlink_to(tmp_path / "elsewhere" / "a.pth")
    writable = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: "elsewhere" not in str(path) and writable(path, mode))
    code, output, errors = in_process("main.py", *RUN, "--out", "a.pth")
    assert code == 1 and not output
    assert_one_error_line(errors, "elsewhere cannot be written", "another --out")


@pytest.mark.parametrize("target", ["a.gguf", "a/"])
@pytest.mark.parametrize("room", [0.3, 0.8, 0.999])
def test_an_export_onto_a_full_disk_is_one_line_and_keeps_the_earlier_one(earlier, tmp_path, target, room):
    """numpy and safetensors write by themselves: one lost the error, the other raised its own kind."""
    resource = pytest.importorskip("resource")
    pytest.importorskip("gguf" if target == "a.gguf" else "safetensors")
    folder = copy_of(earlier, tmp_path / "run")
    assert Child(folder, "convert.py", OUT.best, target).wait() == 0
    files = [path for path in (folder / target, *(folder / "a").glob("*")) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    limit = int(room * max(map(len, before.values())))
    prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    child = Child(folder, "convert.py", OUT.best, target, "--force", prepare=prepare)
    assert child.wait() == 1
    assert_one_error_line(child.stderr, "cannot write", target)
    assert {path: path.read_bytes() for path in before} == before
    assert not list(folder.rglob("*.tmp"))


def test_a_failure_for_want_of_memory_says_what_is_kept(earlier, tmp_path):
    folder = copy_of(earlier, tmp_path / "run")

    def prepare():
        main = importlib.import_module("main")
        evaluate = main.evaluate
        main.evaluate = lambda run: (_ for _ in ()).throw(MemoryError) if run.state.step == 2 else evaluate(run)

    child = train(folder, *RUN, prepare=prepare, code=1)
    assert_one_error_line(child.stderr, "not enough memory", "saved at step 2 of 3; continue with: python main.py")
    train(folder, "--resume")


def test_a_refused_resume_leaves_no_lock(uninterrupted, tmp_path):
    folder = copy_of(uninterrupted, tmp_path / "run")
    (folder / OUT.lock).unlink()
    before = sorted((folder / "checkpoints").iterdir())
    assert_one_error_line(train(folder, "--resume", code=2).stderr, "has made 3 steps already")
    assert_one_error_line(train(folder, "--resume", "--seed", 1, code=2).stderr, "--seed 1 contradicts")
    assert sorted((folder / "checkpoints").iterdir()) == before


def test_only_old_files_with_our_own_names_are_removed(tmp_path):
    ours, young = "a[1].pth.0123abcd.tmp", "a[1].pth.0123abce.tmp"
    others = ["a[1].pth.mine.tmp", "a[1].pth.0123abcg.tmp", "a1.pth.0123abcd.tmp", "a[1].pth.0123abcd.tmp.txt"]
    for name in (ours, young, *others):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, None if name == young else (0, 0))
    durable.write_atomically(tmp_path / "a[1].pth", lambda file: file.write(b"text"))
    assert sorted(os.listdir(tmp_path)) == sorted(["a[1].pth", young, *others])
