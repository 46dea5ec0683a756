"""Crash safety: whatever operation fails and whenever the process dies, what was announced as saved can be loaded."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import main
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
    seeded,
    train,
    write_corpus,
)
from formats.checkpoint import TRAINING, read_checkpoint, write_checkpoint
from helpers import assert_one_error_line, assert_same_state
from support import durable
from training import state as run_files
from training.state import RunPaths

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


# --- Every operation fails once ----------------------------------------------------------------------------------


def count_operations(earlier, tmp_path) -> list[str]:
    """The operations of an undisturbed run, in order."""
    folder = copy_of(earlier, tmp_path / "counted")
    faults = Faults(0, lambda: None)

    def prepare():
        faults.install()
        # The child's list dies with it: write it down at the end, past the counting.
        happens = faults.happens

        def noted(name):
            happens(name)
            os.write(note, f"{name}\n".encode())

        faults.happens = noted

    note = os.open(tmp_path / "operations.txt", os.O_WRONLY | os.O_CREAT)
    train(folder, *RUN, prepare=prepare)
    os.close(note)
    return (tmp_path / "operations.txt").read_text().splitlines()


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
        survivable = name == "none" or (name == "link" and kind != "death")  # a failed link becomes a copy
        assert code == (0 if survivable else expected_failure), (nth, name, child.stderr)
        assert_nothing_lost(folder, child.stdout, files_of(earlier))
        if code == 1:
            assert_one_error_line(child.stderr, os.strerror(errno.ENOSPC if kind == "no space" else errno.EIO))
            assert not list(folder.rglob("*.tmp")), "a failed write left its temporary file"


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_run_that_died_resumes_to_the_same_bits(uninterrupted, tmp_path, share):
    names = count_operations(write_corpus(tmp_path / "empty"), tmp_path)
    folder = write_corpus(tmp_path / "run")
    child = Child(folder, "main.py", *RUN, prepare=Faults(int(share * len(names)), lambda: os._exit(9)).install)
    assert child.wait() == 9
    train(folder, "--resume")
    assert_same_state(folder / OUT.last, uninterrupted / OUT.last)
    lines = [json.loads(line) for line in (folder / OUT.metrics).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3], "each evaluation has one line"
    assert not list(folder.rglob("*.tmp"))


# --- SIGKILL -----------------------------------------------------------------------------------------------------


def kill_at_random(folder, moments, seed) -> list[int]:
    """Kill runs of one folder at random moments, each time checking what is left; the steps they had reached."""
    random, reached, output = seeded(seed), [], ""
    for _ in range(moments):
        resume = ["--resume"] if (folder / OUT.last).exists() or (folder / OUT.previous).exists() else []
        child = Child(folder, "main.py", *(resume or [*SMALL_RUN, "--steps", 10_000, "--eval-every", 1]))
        deadline = time.monotonic() + 20
        while not child.stdout and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.stderr
        output += child.stdout
        reached.append(assert_nothing_lost(folder, output))
    return reached


def test_sigkill_loses_nothing_announced(tmp_path):
    reached = kill_at_random(write_corpus(tmp_path), 4, "quick")
    assert reached == sorted(reached) and reached[-1] > 0


@pytest.mark.slow
def test_sigkill_at_fifty_moments_loses_nothing_announced(tmp_path):
    reached = kill_at_random(write_corpus(tmp_path), 50, "slow")
    assert reached == sorted(reached) and reached[-1] > 50
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 6, "killed writers' files pile up"


# --- Disk full ---------------------------------------------------------------------------------------------------


def test_a_full_disk_is_exit_1_with_the_reason(earlier, tmp_path):
    resource = pytest.importorskip("resource")
    folder = copy_of(earlier, tmp_path / "run")
    size = (folder / OUT.best).stat().st_size  # the best model fits, the training state, three times as large, not

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))

    child = train(folder, *RUN, prepare=limit, code=1)
    assert_one_error_line(
        child.stderr,
        "tiny_decoder.last.pth",
        os.strerror(errno.EFBIG),
        "no training state of this run was saved yet",
        "tiny_decoder.pth holds the model of step 1",
    )
    assert_nothing_lost(folder, child.stdout, files_of(earlier))


def test_a_disk_that_is_full_before_the_first_model_leaves_the_earlier_one(earlier, tmp_path):
    resource = pytest.importorskip("resource")
    folder = copy_of(earlier, tmp_path / "run")
    child = train(folder, *RUN, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)), code=1)
    assert_one_error_line(child.stderr, "no training state", "tiny_decoder.pth is still the earlier run's")
    assert_nothing_lost(folder, child.stdout, files_of(earlier))


@pytest.mark.parametrize(
    "lost, words",
    [
        (
            ["checkpoints"],
            "tiny_decoder.last.pth was saved at step 2 and is gone (checkpoints/tiny_decoder.pth is gone",
        ),
        ([OUT.last], "was saved at step 2 and is gone; --resume continues from checkpoints/tiny_decoder.previous.pth"),
        ([OUT.last, OUT.previous], "is gone (checkpoints/tiny_decoder.pth holds the model of step 2)"),
    ],
)
def test_what_is_lost_in_mid_run_is_not_named_as_kept(tmp_path, lost, words):
    """Files vanish between an evaluation and the next, which then meets a disk that fails."""

    def prepare():
        real = main.train_step

        def lose(run):
            if run.state.step == 2:
                for path in map(Path, lost):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(run)

        main.train_step = lose

    child = train(write_corpus(tmp_path), *RUN, prepare=prepare, code=1)
    assert_one_error_line(child.stderr, words)


def test_a_folder_that_is_deleted_in_mid_run_is_one_line(tmp_path):
    def prepare():
        real = main.train_step

        def lose(run):
            if run.state.step == 2:
                shutil.rmtree("checkpoints")
            return real(run)

        main.train_step = lose

    child = train(write_corpus(tmp_path), *RUN, prepare=prepare, code=1)
    assert_one_error_line(child.stderr, "tiny_decoder.metrics.jsonl", "was saved at step 2 and is gone")


# --- The order of the calls --------------------------------------------------------------------------------------


def test_the_order_is_write_fsync_rename_fsync_folder(earlier, tmp_path):
    names = count_operations(write_corpus(tmp_path / "empty"), tmp_path)
    one_write = [name for i, name in enumerate(names) if name != "write" or names[i - 1] != "write"]
    best = ["open", "write", "fsync", "replace", "fsync folder"]
    last = ["open", "write", "fsync", "replace", "replace", "fsync folder"]  # the old state becomes the previous one
    metrics = ["open", "write", "fsync"]
    assert one_write == [*metrics, *best, *best, *metrics, *best, *last, *metrics, *best, *last]


# --- One generation back -----------------------------------------------------------------------------------------


def test_a_damaged_state_gives_way_to_the_one_before_with_a_loud_line(uninterrupted, tmp_path):
    folder = copy_of(uninterrupted, tmp_path / "run")
    for again in range(2):
        flip_a_bit(folder / OUT.last)
        child = train(folder, "--resume")  # of a run that was complete but for its damaged state
        assert f"WARNING: {OUT.last} is no TinyGPT checkpoint" in child.stderr
        assert f"WARNING: continuing from the state before it, {OUT.previous}, step 2" in child.stderr
        assert_same_state(folder / OUT.last, uninterrupted / OUT.last)
        assert RunPaths(folder / OUT.best).read_newest()[2] == folder / OUT.last
        assert read_checkpoint(folder / OUT.previous, TRAINING)[0]["training"]["step"] == 2, (
            "the whole one was pushed out"
        )
        assert [json.loads(line)["step"] for line in (folder / OUT.metrics).read_text().splitlines()] == [1, 2, 3], (
            again
        )


def test_both_damaged_is_an_error_that_names_the_newest(uninterrupted, tmp_path):
    folder = copy_of(uninterrupted, tmp_path / "run")
    for path in (OUT.last, OUT.previous):
        (folder / path).write_bytes(b"")
    child = train(folder, "--resume", code=2)
    assert_one_error_line(child.stderr, str(OUT.last), "only a part of one")


# --- An earlier run ----------------------------------------------------------------------------------------------


def test_an_earlier_run_is_kept_where_links_are_not_to_be_had(earlier, tmp_path, monkeypatch):
    folder = copy_of(earlier, tmp_path / "run")
    before = files_of(folder)
    monkeypatch.setattr(run_files.os, "link", lambda *_: failing(errno.EPERM)())
    RunPaths(folder / OUT.best).keep_earlier_run()
    after = files_of(folder)
    assert {name.replace("decoder.1.", "decoder."): after[name] for name in after if ".1." in name} == before
    assert [name for name in after if ".1." not in name] == ["tiny_decoder.pth"]


def test_torn_and_foreign_lines_leave_the_metrics(tmp_path):
    paths = RunPaths(tmp_path / "a.pth")
    path = paths.metrics
    path.write_bytes(b'{"step": 1}\n[1]\n3\n\xff\n{"step": "x"}\n{"step": 3}\n{"step": 2}\n{"step": 2}')
    paths.trim_metrics(step=2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


# --- The lock ----------------------------------------------------------------------------------------------------


def test_two_runs_on_one_output_the_second_is_refused(tmp_path):
    folder = write_corpus(tmp_path)
    first = Child(folder, "main.py", *SMALL_RUN, "--steps", 100_000, "--eval-every", 10)
    try:
        deadline = time.monotonic() + 20
        while not announced_step(first.stdout):
            assert time.monotonic() < deadline, first.stderr
            time.sleep(0.01)
        for flags in ([*SMALL_RUN], ["--resume"]):
            inside = tmp_path / "second"
            inside.mkdir(exist_ok=True)
            second = Child(inside, "main.py", *flags, prepare=lambda: os.chdir(folder))
            assert second.wait() == 2
            assert_one_error_line(second.stderr, "tiny_decoder.pth", "another process", "--out")
        elsewhere = Child(inside, "main.py", *RUN, "--out", "other.pth", prepare=lambda: os.chdir(folder))
        assert elsewhere.wait() == 0, elsewhere.stderr
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    train(
        folder, "--resume", "--stop-at", 100_000, "--steps", announced_step(first.stdout) + 20
    )  # died with its process


def test_a_lock_that_cannot_be_made_says_what_to_do(tmp_path, in_process):
    write_corpus(tmp_path)
    OUT.best.with_suffix(".lock").mkdir(parents=True)
    code, _, errors = in_process("main.py", *RUN)
    assert code == 1
    assert_one_error_line(errors, "cannot make the lock file", "tiny_decoder.lock", "another --out")


def test_a_refused_resume_leaves_no_lock(uninterrupted, tmp_path):
    folder = copy_of(uninterrupted, tmp_path / "run")
    (folder / OUT.best).with_suffix(".lock").unlink()
    before = sorted((folder / "checkpoints").iterdir())
    assert_one_error_line(train(folder, "--resume", code=2).stderr, "has made 3 steps already")
    assert_one_error_line(train(folder, "--resume", "--seed", 1, code=2).stderr, "--seed 1 contradicts")
    assert sorted((folder / "checkpoints").iterdir()) == before


def test_a_state_with_numbers_that_do_not_load_is_not_written(tmp_path):
    """What cannot be loaded must not push out what can."""
    path, header = tmp_path / "a.last.pth", {"kind": TRAINING, "config": {}, "origin": {}}
    write_checkpoint(path, header, {"optimizer/0/0/exp_avg_sq": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match="exp_avg_sq"):
        write_checkpoint(path, header, {"optimizer/0/0/exp_avg_sq": torch.tensor([1.0, torch.inf])})
    assert path.read_bytes() == before


def test_leftovers_are_removed_by_age(tmp_path):
    old, young = tmp_path / "a[1].pth.77.tmp", tmp_path / "a[1].pth.78.tmp"
    for path in (old, young, tmp_path / "a1.pth.9.tmp"):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    durable.remove_leftovers(tmp_path / "a[1].pth", older_than=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1.pth.9.tmp", young.name]
