"""Several processes: torchrun as a user starts it, with a network of a few thousand weights."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import environment
from corpora.synthetic import synthetic_text
from formats.checkpoint import TRAINING, load_model, read_checkpoint
from helpers import ROOT, assert_same_state, read_metrics
from recipe import parse_flags
from support.command import UserError
from training.checks import check_split
from training.distributed import DistContext

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and process groups")

NETWORK = ["--max-seq", "16", "--embed-dim", "16", "--num-heads", "2", "--num-layers", "1", "--dtype", "float32"]
PLAIN = ["--data", "text.txt", *NETWORK, "--batch-size", "12", "--optimizer", "adamw", "--lr", "1e-3"]
# main.py, in which one rank meets a fault before its sixth update, and silence is noticed after 10 seconds, not 50.
FAULTY_MAIN = """
import datetime, os, runpy, signal, sys
import torch
real, updates = torch.optim.AdamW.step, 0
def step(self, *arguments, **options):
    global updates
    updates += 1
    if updates == 6 and os.environ["RANK"] == {rank!r}:
        {fault}
    return real(self, *arguments, **options)
torch.optim.AdamW.step = step
sys.path.insert(0, {root!r})
import support.start, training.distributed
training.distributed.SILENCE = datetime.timedelta(seconds=10)
runpy.run_path({root!r} + "/main.py", run_name="__main__")
"""
FAULTS = {
    "dies": "os.kill(os.getpid(), signal.SIGKILL)",
    "raises": "raise RuntimeError('a bug')",
    "gets SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "meets a NaN": "self.param_groups[0]['params'][0].data.fill_(float('nan'))",
    "loses its disk": "raise OSError('the disk is gone')",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A working folder with a small text of the synthetic corpus."""
    text, _ = synthetic_text(6000)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return tmp_path


def start(folder: Path, *arguments: object, launch=(), script: object = ROOT / "main.py", inside=(), **variables: str):
    """`torchrun LAUNCH main.py ARGUMENTS`, at work; inside: a command that runs another one somewhere else."""
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "torch.distributed.run", *map(str, (*launch, script, *arguments))],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED="1", **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


STANDALONE = ("--standalone", "--nproc-per-node", "2")


def torchrun(folder: Path, *arguments: object, launch=STANDALONE, **options) -> subprocess.CompletedProcess:
    """The same, to its end."""
    with start(folder, *arguments, launch=launch, **options) as launcher:
        output, errors = launcher.communicate(timeout=150)
    return subprocess.CompletedProcess("torchrun", launcher.returncode, output, errors)


def faulty_main(folder: Path, fault: str, rank: str) -> Path:
    """The path of a main.py that executes `fault`."""
    script = folder / "faulty.py"
    script.write_text(FAULTY_MAIN.format(root=str(ROOT), rank=rank, fault=fault), encoding="utf-8")
    return script


def saved_step(folder: Path) -> int:
    """The step of the training state in a.last.pth."""
    return read_checkpoint(folder / "a.last.pth", TRAINING)[0]["training"]["step"]


def last_words(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith(("error:", "interrupted:"))]


def processes_in(folder: Path) -> list[str]:
    """The other processes whose working folder this is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if os.readlink(entry / "cwd") == str(folder) and entry.name != str(os.getpid()):
                found.append(entry.name)
    return found


def test_what_cannot_be_split_is_refused():
    beyond = torch.cuda.device_count()
    for device in ("mps", "cuda"):
        with pytest.raises(UserError, match=f"--nproc-per-node: here are {beyond} CUDA GPUs"):
            DistContext(size=beyond + 2, rank=beyond, local_rank=beyond).pick_device(torch.device(device))
    with pytest.raises(UserError, match="--batch-size 10 must be divisible by 3 .processes. x 2"):
        check_split(parse_flags(["--batch-size", "10", "--grad-accum", "2"])[0], DistContext(size=3))


# --- With processes ----------------------------------------------------------------------------------------------


def test_two_ranks_train_as_one_process_does(folder, in_process):
    """Loss by loss over 50 steps; --grad-accum on top; one voice; no trace of the wrapper; resumed by one process."""
    fifty = [*PLAIN, "--ema-decay", "0.9", "--distill", "0.5", "--steps", "50", "--eval-every", "1"]
    done = torchrun(folder, *fifty, "--grad-accum", 3, "--out", "two.pth")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step    50") == 1 and "ranks    2 processes" in done.stdout
    assert in_process("main.py", *fifty, "--out", "one.pth")[0] == 0
    one, two = (read_metrics(folder / f"{name}.metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 50
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"] and a["tokens"] == b["tokens"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-5)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=2e-5)
    for kind in ("one", "two"):
        load_model(folder / f"{kind}.pth")
    _, resumed, _ = in_process("main.py", "--resume", "--steps", 60, "--out", "two.pth")
    assert "the run used 2 x 1 (processes x threads), now 1 x 1" in resumed and "resuming at step 50" in resumed
    assert read_metrics(folder / "two.metrics.jsonl")[-1]["val_loss"] < two[0]["val_loss"]


def test_a_run_whose_rank_was_killed_resumes_to_the_same_bits(folder):
    steps = [*PLAIN, "--dropout", "0.1", "--ema-decay", "0.5", "--steps", "8", "--eval-every", "4"]
    killed = torchrun(folder, *steps, "--out", "killed.pth", script=faulty_main(folder, FAULTS["dies"], "1"))
    assert killed.returncode and "lost contact" in killed.stderr and len(last_words(killed.stderr)) == 1
    done = torchrun(folder, "--resume", "--out", "killed.pth")
    assert "resuming at step 4" in done.stdout
    assert [line["step"] for line in read_metrics(folder / "killed.metrics.jsonl")] == [4, 8]
    story = read_metrics(folder / "killed.story.jsonl")
    assert [frame["step"] for frame in story] == [0, 4, 8], "the first rank alone writes"
    assert torchrun(folder, *steps, "--out", "whole.pth").returncode == 0
    assert_same_state(folder / "killed.last.pth", folder / "whole.last.pth")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the ranks in /proc")
def test_torchrun_killed_while_its_ranks_start_leaves_none_behind(folder):
    """They tried to reach its store for an hour."""
    with start(folder, *PLAIN, "--steps", "9", launch=STANDALONE) as launcher:
        deadline = time.monotonic() + 60
        while len(processes_in(folder)) < 3 and time.monotonic() < deadline:  # the launcher and its ranks
            time.sleep(0.02)
        time.sleep(0.5)  # in which they notice who started them; importing PyTorch takes longer
        launcher.kill()
        while processes_in(folder) and time.monotonic() < deadline + 60:
            time.sleep(0.1)
        assert not processes_in(folder)


# --- Faults ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fault, rank", list(zip(FAULTS, "010101", strict=True)))
def test_a_fault_on_one_rank_ends_all_with_one_line(folder, fault, rank):
    script = faulty_main(folder, FAULTS[fault], rank)
    done = torchrun(folder, *PLAIN, "--steps", 500, "--eval-every", 4, "--out", "a.pth", script=script)
    assert done.returncode != 0
    (line,) = last_words(done.stderr)
    assert "saved at step" in line
    assert processes_in(folder) == []
    assert saved_step(folder) in (4, 6)  # 6: saved after the SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("signum", ["SIGTERM", "SIGINT", "SIGKILL"])  # Windows has no SIGKILL
def test_a_signal_to_torchrun_stops_all_ranks_after_saving(folder, signum):
    flags = [*PLAIN, "--steps", "5000", "--eval-every", "10", "--out", "a.pth"]
    with start(folder, *flags, launch=STANDALONE) as launcher:
        for line in launcher.stdout:
            if line.startswith("step"):
                launcher.send_signal(getattr(signal, signum))
                break
        _, errors = launcher.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert launcher.returncode != 0 and processes_in(folder) == []
    (line,) = last_words(errors)
    assert "interrupted: saved at step" in line
    assert saved_step(folder) >= 10


# --- Two machines ------------------------------------------------------------------------------------------------


def joint_launch(number: int, addresses: list[str], port: int) -> list[str]:
    """torchrun's flags on one of two machines."""
    meeting = ["--rdzv-id", "test", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{addresses[0]}:{port}"]
    meeting += ["--rdzv-conf", f"is_host={number == 0},read_timeout=300", "--local-addr", addresses[number]]
    return ["--nnodes", "2", "--nproc-per-node", "1", *meeting]


@pytest.fixture
def folders(folder) -> list[Path]:
    """The working folders of two machines, the same text in both."""
    other = folder / "other"
    other.mkdir()
    shutil.copy(folder / "text.txt", other)
    return [folder, other]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every 127.x.x.x address without set-up")
def test_two_launchers_on_two_addresses_train_as_one(folders):
    """The first one's rank 0 writes; then both resume, though the second machine has no file to resume from."""
    flags = [*PLAIN, "--steps", "8", "--eval-every", "4", "--out", "a.pth"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        addresses, port = ["127.0.0.1", "127.0.0.2"], free.getsockname()[1]
    for more in (["--stop-at", "4"], ["--resume"]):
        launches = [joint_launch(number, addresses, port) for number in range(2)]
        launchers = [start(folders[number], *flags, *more, launch=launches[number]) for number in range(2)]
        ends = [launcher.communicate(timeout=60) for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [0, 0], ends
        assert "ranks    2 processes" in ends[0][0] and ends[1][0] == ""
    assert [path.name for path in folders[1].iterdir()] == ["text.txt"]
    assert [line["step"] for line in read_metrics(folders[0] / "a.metrics.jsonl")] == [4, 8]


def ip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them: 10.77.0.1 and .2. Their names are those of its ends, too."""
    names = [f"tinygpt{os.getpid() % 10**6}{side}" for side in "ab"]
    if not shutil.which("ip") or ip("netns", "add", names[0]).returncode:
        pytest.skip("network namespaces need Linux, iproute2 and root")
    ip("netns", "add", names[1])
    ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
    for number, name in enumerate(names):
        ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", name)
        ip("-n", name, "link", "set", name, "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        for pid in ip("netns", "pids", name).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", name)


@pytest.mark.slow
def test_machines_that_are_cut_off_from_each_other_end_by_themselves(folders, machines):
    flags = [*PLAIN, "--eval-every", "100", "--out", "a.pth", "--steps", "1000000"]
    addresses, launchers = ["10.77.0.1", "10.77.0.2"], []
    for number, name in enumerate(machines):
        options = {"launch": joint_launch(number, addresses, 29500), "GLOO_SOCKET_IFNAME": name}
        options["script"] = faulty_main(folders[number], "pass", "0")
        launchers.append(start(folders[number], *flags, inside=["ip", "netns", "exec", name], **options))
    while not (folders[0] / "a.last.pth").exists():
        assert [launcher.poll() for launcher in launchers] == [None, None]
        time.sleep(0.1)
    ip("-n", machines[0], "link", "set", machines[0], "down")
    ends = [launcher.communicate(timeout=80)[1] for launcher in launchers]
    assert all(launcher.returncode for launcher in launchers)
    assert ["lost contact" in line for errors in ends for line in last_words(errors)] == [True, True]
