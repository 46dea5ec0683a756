"""Training in several processes ("ranks") that PyTorch's own launcher starts, on one machine or on several.

    torchrun --standalone --nproc-per-node 2 main.py

Data parallel training: each rank holds the whole model and computes the gradient of its share of every batch;
`DistributedDataParallel` averages the gradients while they are being computed; then all ranks make the same update.
Rank 0 alone prints and writes files. Started without torchrun there is one rank, and everything here does nothing.
"""

from support.start import PARENT

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from support.command import Interrupted, StopSignal, UserError, interruptible, one_line, out_of_memory

SILENCE = timedelta(seconds=50)  # how long a rank waits for the others' part of a sum before it takes them for lost, …
PATIENCE = timedelta(hours=1)  # … and for their set-up, in which one of them may be downloading a corpus
ANSWER = 5.0  # seconds in which torchrun's store has to answer once the run has failed
EXPLAINED = (OSError, UserError, FloatingPointError, Interrupted)  # failures whose message is enough


@dataclass(frozen=True)
class DistContext:
    """Which of how many processes this is, and how they agree. What follows is called by every rank, in the same order.

    A rank that is lost makes the others raise RuntimeError in whatever they do together (see `faults_named`).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # which of the ranks on its machine
    launcher: int = 0  # the process id of torchrun; 0 without torchrun
    store: "dist.Store | None" = None  # small values that all ranks can read and write

    @property
    def first(self) -> bool:
        """Whether this rank is the one that prints and writes."""
        return self.rank == 0

    @property
    def abandoned(self) -> bool:
        """Whether the launcher has died, so that nobody would end this process if the others were lost."""
        return bool(self.launcher) and os.getppid() != self.launcher

    def combined(self, values: torch.Tensor, how: dist.ReduceOp) -> torch.Tensor:
        """What the ranks give, combined element by element."""
        if self.size > 1:
            dist.all_reduce(values, how)
        return values

    def sum(self, values: float | np.ndarray) -> np.ndarray:
        """The element-wise sum, in float64, of what the ranks give."""
        return self.combined(torch.tensor(values, dtype=torch.float64), dist.ReduceOp.SUM).numpy()

    def require_same(self, what: str, value: str) -> None:
        """Wait until every rank has come here; UserError if this one's value is not rank 0's."""
        if self.size > 1:
            self.store.set(f"{what}/{self.rank}", value)
            if self.store.multi_get([f"{what}/{rank}" for rank in range(self.size)])[0].decode() != value:
                raise UserError(f"process {self.rank} has another {what} than process 0: start all of them alike")

    @contextlib.contextmanager
    def one_per_machine_first(self, what: str) -> Iterator[None]:
        """One rank of each machine runs the block before the others, which then find what it has fetched."""
        key = f"{what} on machine {os.environ.get('GROUP_RANK')}"
        if self.local_rank:
            self.store.wait([key])
        yield
        if self.size > 1 and not self.local_rank:
            self.store.set(key, "")

    def from_first(self, value: object) -> object:
        """What rank 0 gives, on every rank; it travels as a pickle."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def pick_device(self, device: torch.device) -> torch.device:
        """The device for this rank: the CPU for all, or a GPU each. Raises UserError if there are too few."""
        if self.size == 1 or device.type == "cpu":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node: here are {torch.cuda.device_count()} CUDA GPUs; or use --device cpu")
        torch.cuda.set_device(self.local_rank)  # before anything takes memory on the first GPU
        return torch.device("cuda", self.local_rank)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network such that backward leaves every rank with the mean of the ranks' gradients.

        All ranks start from rank 0's weights. The network has no buffers that change, so none are sent around; the
        gradients live in the buffers that are sent, so they are not copied.
        """
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def stop_signal(self, stop: StopSignal) -> int:
        """The signal that ends the run, on whichever process it came, or 0; all processes agree on it."""
        signum = signal.SIGTERM if self.abandoned else stop.signum
        return int(self.combined(torch.tensor(int(signum)), dist.ReduceOp.MAX))

    @contextlib.contextmanager
    def faults_named(self) -> Iterator[None]:
        """Within it, a lost rank raises ConnectionError, and a bug ChildProcessError after its traceback is printed."""
        try:
            yield
        except Exception as error:
            if self.size == 1 or isinstance(error, EXPLAINED) or out_of_memory(error):
                raise
            here, text = f"process {self.rank} of {self.size}", one_line(error)
            if isinstance(error, dist.DistError) or "/gloo/" in text:  # gloo raises RuntimeError("[its/gloo/file] …")
                raise ConnectionError(f"{here} lost contact with another one ({text})") from None
            traceback.print_exc(file=sys.__stderr__)
            raise ChildProcessError(f"{here} failed: {type(error).__name__}: {text}") from None

    def reports_failure(self) -> bool:
        """Whether this rank is the one to print why the run has failed: the first to say so in torchrun's store.

        If the store is gone, or this machine is cut off from it, one rank of each machine prints.
        """
        try:
            return interruptible(lambda: self.store.add("failures reported", 1), ANSWER) == 1
        except (AttributeError, RuntimeError, TimeoutError) as error:  # no store yet; it is gone; out of reach
            if isinstance(error, TimeoutError) and not self.abandoned:
                # torchrun waits for the store too, for 15 minutes (until Linux gives up), and notices no signal.
                os.kill(self.launcher, signal.SIGKILL)
            return not self.local_rank


ALONE = DistContext()


@contextlib.contextmanager
def joined() -> Iterator[DistContext]:
    """The ranks that torchrun's environment describes, connected; a single one without torchrun.

    Only rank 0's output is seen. If the run fails, the first rank to fail prints why, and the others leave silently.
    """
    if not os.environ.keys() >= {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK"}:
        yield ALONE
        return
    if os.name == "nt":  # a lost rank would not be noticed: there, a process keeps the id of a parent that has died
        raise UserError("several processes are for Linux and macOS: leave torchrun out")
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    ranks = DistContext(rank, size, local_rank, launcher=PARENT)
    stderr, nowhere = sys.stderr, open(os.devnull, "w", encoding="utf-8")
    if not ranks.first:
        sys.stdout = sys.stderr = nowhere
    try:
        with ranks.faults_named():
            ranks = connect(ranks)
            yield ranks
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all ranks once one has left: this one is leaving
        sys.stderr = stderr if ranks.reports_failure() else nowhere
        raise
    # Not by sys.exit: a thread of gloo that is still at work when Python ends would abort the process, which torchrun
    # takes for a failure.
    sys.stdout.flush()
    os._exit(0)


def connect(ranks: DistContext) -> DistContext:
    """Meet the other ranks where torchrun says. CPU tensors travel by gloo, GPU tensors by nccl."""
    meeting = dist.rendezvous("env://", timeout=PATIENCE)
    try:
        store, _, _ = interruptible(lambda: next(meeting), hopeless=lambda: ranks.abandoned)
    except TimeoutError:
        raise ConnectionError("torchrun has ended before its processes met") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=SILENCE)
    return replace(ranks, store=store)
