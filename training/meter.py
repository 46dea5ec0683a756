"""What a run's loop counts: steps, seconds, losses, and the progress that its user sees."""

import contextlib
import time
from collections.abc import Iterator

from tqdm import tqdm

from recipe import MAX_STEPS
from training.run import Run


class Meter:
    """Within it, a progress bar is shown; `count` is called after each step."""

    def __init__(self, run: Run):
        self.run = run
        self.step_seconds: list[float] = []  # of every step so far
        self.began = time.perf_counter()

    def __enter__(self) -> "Meter":
        self.bar = tqdm(initial=self.run.state.step, unit="step", disable=None, dynamic_ncols=True)
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def count(self, loss: float) -> None:
        """A step has ended: add its time and its loss to the run's sums, and show them."""
        state, now = self.run.state, time.perf_counter()
        seconds, self.began = now - self.began, now
        self.step_seconds.append(seconds)
        state.train_seconds += seconds
        state.seconds_sum += seconds
        state.loss_sum += loss
        state.loss_steps += 1
        self.bar.total = self.run.settings.steps if self.run.settings.steps < MAX_STEPS else None  # not yet planned
        self.bar.update()
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within it does not count as training."""
        yield
        self.began = time.perf_counter()
