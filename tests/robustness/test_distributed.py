"""Several processes: torchrun as a user starts it, with a network of a few thousand weights."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import data_setup
from conftest import environment
from corpora.synthetic import synthetic_text
from formats.checkpoint import TRAINING, load_model, read_checkpoint
from helpers import ROOT, assert_same_state
from main import evaluate
from recipe import parse_flags
from support.command import UserError
from training.checks import check_split
from training.distributed import ALONE, DistContext
from training.run import open_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and process groups")

NETWORK = ["--max-seq", "16", "--embed-dim", "16", "--num-heads", "2", "--num-layers", "1", "--dtype", "float32"]
PLAIN = ["--data", "text.txt", *NETWORK, "--batch-size", "12", "--optimizer", "adamw", "--lr", "1e-3"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
# main.py, in which one rank meets a fault before one step, in torchrun's first attempt.
FAULTY_MAIN = """
import os, signal, sys
sys.path.insert(0, {root!r})
import main
from support import command
real = main.train_step
def train_step(run):
    if run.state.step == 5 and os.environ["RANK"] == {rank!r} and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        {fault}
    return real(run)
main.train_step = train_step
command.run(main.main)
"""
FAULTS = {
    "dies": "os.kill(os.getpid(), signal.SIGKILL)",
    "raises": "raise RuntimeError('a bug')",
    "gets SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "meets a NaN": "main.next_token_loss = lambda logits, targets: logits.mean() * float('nan')",
    "loses its disk": "raise OSError('the disk is gone')",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A working folder with a small text of the synthetic corpus."""
    text, _ = synthetic_text(6000)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return tmp_path


def torchrun(folder: Path, *arguments: object, ranks: int = 2, script: object = ROOT / "main.py", launch=()):
    """`torchrun --standalone --nproc-per-node RANKS main.py ARGUMENTS`, to its end."""
    return subprocess.run(
        [*TORCHRUN, str(ranks), *launch, str(script), *map(str, arguments)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def metrics(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.metrics.jsonl").read_text().splitlines()]


def saved_step(folder: Path) -> int:
    """The step of the training state in a.last.pth."""
    return read_checkpoint(folder / "a.last.pth", TRAINING)[0]["training"]["step"]


def error_lines(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


def processes_in(folder: Path) -> list[int]:
    """The other processes whose working folder this is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == folder and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# --- Without processes -------------------------------------------------------------------------------------------


def test_one_rank_alone_does_nothing():
    network = torch.nn.Linear(2, 2)
    assert ALONE.first and not ALONE.abandoned
    assert ALONE.sum(1.5) == 1.5 and ALONE.largest(7) == 7
    assert ALONE.wrap(network) is network
    with ALONE.sends_gradients(network, False), ALONE.one_per_machine_first("x"), ALONE.file_of_first(ROOT) as path:
        assert path == ROOT


def test_ranks_share_a_batch_without_overlap():
    dataset = data_setup.ShiftedWindowDataset(torch.arange(500).numpy(), 8)
    whole = data_setup.batch_starts(dataset, 12, seed=3, step=5)
    parts = [data_setup.batch_starts(dataset, 12, 3, 5, rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert torch.cat([torch.from_numpy(part) for part in parts]).tolist() == whole.tolist()


def test_more_processes_than_gpus_is_refused():
    with pytest.raises(UserError, match="0 CUDA GPUs; or use --device cpu"):
        DistContext(size=2).pick_device(torch.device("mps"))
    beyond = torch.cuda.device_count()
    with pytest.raises(UserError, match="--nproc-per-node"):
        DistContext(size=beyond + 2, rank=beyond, local_rank=beyond).pick_device(torch.device("cuda"))


# --- With processes ----------------------------------------------------------------------------------------------


def test_two_ranks_train_as_one_process_does(folder, in_process):
    """Loss by loss over 50 steps; --grad-accum on top; one voice; no trace of the wrapper; resumed by one process."""
    fifty = [*PLAIN, "--steps", "50", "--eval-every", "1"]
    done = torchrun(folder, *fifty, "--grad-accum", 3, "--out", "two.pth")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step    50") == 1 and "ranks    2 processes" in done.stdout
    assert in_process("main.py", *fifty, "--out", "one.pth")[0] == 0
    one, two = metrics(folder, "one"), metrics(folder, "two")
    assert len(one) == len(two) == 50
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"] and a["tokens"] == b["tokens"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-5)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=2e-5)
    for kind in ("one", "two"):
        load_model(folder / f"{kind}.pth")
    with contextlib.ExitStack() as held:
        alone = open_run(*parse_flags(["--resume", "--out", "two.pth", "--steps", "60"]), held, ALONE)
        assert evaluate(alone) == two[-1]["val_loss"]  # shared or not, to the last bit
    _, resumed, _ = in_process("main.py", "--resume", "--steps", 60, "--out", "two.pth")
    assert "the run used 2 processes, now 1" in resumed and "resuming at step 50" in resumed
    assert metrics(folder, "two")[-1]["val_loss"] < two[0]["val_loss"]


def test_a_killed_rank_is_restarted_and_nothing_is_lost(folder):
    """With --max-restarts the run goes on by itself and ends with the bits of an undisturbed one."""
    steps = [*PLAIN, "--dropout", "0.1", "--ema-decay", "0.5", "--steps", "8", "--eval-every", "4"]
    script = folder / "faulty.py"
    script.write_text(FAULTY_MAIN.format(root=str(ROOT), rank="1", fault=FAULTS["dies"]), encoding="utf-8")
    done = torchrun(folder, *steps, "--out", "killed.pth", script=script, launch=("--max-restarts", "3"))
    assert done.returncode == 0, done.stderr
    assert "resuming at step 4" in done.stdout and len(error_lines(done)) == 1
    assert "lost contact" in done.stderr and [line["step"] for line in metrics(folder, "killed")] == [4, 8]
    assert torchrun(folder, *steps, "--out", "whole.pth").returncode == 0
    assert_same_state(folder / "killed.last.pth", folder / "whole.last.pth")


# torchrun twice in one process, as if the second had got the first one's process id.
TWO_LAUNCHES = """
import sys
from torch.distributed.run import main
for _ in range(2):
    main(sys.argv[1:])
"""


def test_another_torchrun_with_the_same_process_id_starts_a_new_run(folder):
    (folder / "twice.py").write_text(TWO_LAUNCHES, encoding="utf-8")
    flags = [*PLAIN, "--steps", "4", "--eval-every", "2", "--out", "a.pth"]
    launch = ["--nproc-per-node", "1", "--master-port", str(free_port()), str(ROOT / "main.py")]
    done = subprocess.run(
        [sys.executable, "twice.py", *launch, *flags],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "the earlier run in a.pth is kept" in done.stdout and "resuming" not in done.stdout
    assert read_checkpoint(folder / "a.last.pth", TRAINING)[0]["training"]["launch"]


# --- Faults ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_one_rank_ends_all_with_one_line(folder, fault, rank):
    script = folder / "faulty.py"
    script.write_text(FAULTY_MAIN.format(root=str(ROOT), rank=rank, fault=FAULTS[fault]), encoding="utf-8")
    done = torchrun(folder, *PLAIN, "--steps", 500, "--eval-every", 4, "--out", "a.pth", script=script)
    assert done.returncode != 0
    assert len(error_lines(done)) == 1 and "saved at step" in error_lines(done)[0], done.stderr
    assert processes_in(folder) == []
    assert saved_step(folder) in (4, 6)  # 6: saved after the SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_torchrun_stops_all_ranks_after_saving(folder, signum):
    with subprocess.Popen(
        [*TORCHRUN, "2", str(ROOT / "main.py"), *PLAIN, "--steps", "5000", "--eval-every", "10", "--out", "a.pth"],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        for line in launcher.stdout:
            if line.startswith("step"):
                launcher.send_signal(signum)
                break
        _, errors = launcher.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert launcher.returncode != 0 and processes_in(folder) == []
    told = [line for line in errors.splitlines() if line.startswith(("interrupted:", "error:"))]
    assert len(told) == 1 and "interrupted: saved at step" in told[0], errors
    assert saved_step(folder) >= 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every 127.x.x.x address without set-up")
def test_two_launchers_on_two_addresses_train_as_one(folder):
    """Two machines: each launcher has its own folder and address; the first one's rank 0 writes; then both resume,
    though the second machine has no file to resume from."""
    other = folder / "other"
    other.mkdir()
    (other / "text.txt").write_bytes((folder / "text.txt").read_bytes())
    flags = [*PLAIN, "--steps", "8", "--eval-every", "4", "--out", "a.pth"]
    port = free_port()
    for more in (["--stop-at", "4"], ["--resume"]):
        launchers = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes",
                    "2",
                    "--nproc-per-node",
                    "1",
                    "--rdzv-backend",
                    "c10d",
                    "--rdzv-id",
                    "test",
                    "--rdzv-endpoint",
                    f"127.0.0.1:{port}",
                    "--local-addr",
                    address,
                    str(ROOT / "main.py"),
                    *flags,
                    *more,
                ],
                cwd=place,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for address, place in (("127.0.0.1", folder), ("127.0.0.2", other))
        ]
        ends = [launcher.communicate(timeout=60) for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [0, 0], ends
        assert "ranks    2 processes" in ends[0][0] and ends[1][0] == ""
    assert sorted(path.name for path in other.iterdir()) == ["text.txt"]
    assert [line["step"] for line in metrics(folder, "a")] == [4, 8]


def test_a_batch_that_cannot_be_split_names_one_that_can():
    with pytest.raises(UserError, match="--batch-size 10 .* 3 .processes. x 2 .*: --batch-size 12 can"):
        check_split(parse_flags(["--batch-size", "10", "--grad-accum", "2"])[0], DistContext(size=3))
