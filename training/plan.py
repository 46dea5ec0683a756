"""How many steps fit into the time: fixed once, when the warm-up ends.

Until then the schedule does not depend on the number of steps, so `--steps N` with the number found repeats the run.
"""

import math
import statistics
import time
from collections.abc import Callable

from recipe import make_parser
from training.run import Run

FEWEST = 4  # steps whose time is known before their median is trusted
LONG = 30.0  # seconds from which on a run's length is announced


Task = Callable[[], object]


def plan_steps(run: Run, step_seconds: list[float], elapsed: float, dry_step: Task, evaluation: Task) -> None:
    """Fix the number of steps, and how often to evaluate, from the steps so far and one timed evaluation.

    step_seconds: what the steps of the warm-up took; elapsed: seconds since the command began. dry_step computes
    gradients that are dropped; evaluation is what happens at one. Without --minutes only the length is announced.
    """
    settings, state = run.settings, run.state
    while settings.minutes and len(step_seconds) < FEWEST:
        step_seconds.append(seconds_of(dry_step))
        run.network.zero_grad(set_to_none=True)
    seconds = statistics.median(step_seconds[len(step_seconds) // 2 :]) if step_seconds else 0.0
    rate = settings.batch_size * settings.max_seq / seconds if seconds else math.inf
    state.planned = True
    if not settings.minutes:
        left = seconds * (settings.steps - state.step)
        if left > LONG:
            print(f"time     {rate:,.0f} tokens/s: {in_minutes(left)}, evaluations not counted")
        return
    preset = make_parser(settings.preset)
    steps, every = preset.get_default("steps"), preset.get_default("eval_every")
    evaluations = math.ceil(steps / every)
    overhead = elapsed + evaluations * seconds_of(evaluation)
    fitting = two_digits(state.step + int(max(0, 60 * settings.minutes - overhead) / seconds))
    fitting = run.dist.largest(min(settings.steps, max(fitting, state.step + 1)) if run.dist.first else 0)  # rank 0's
    if settings.eval_every == every:
        settings.eval_every = max(1, round(fitting / evaluations))

    def length(steps: int) -> str:
        return in_minutes(overhead + seconds * (steps - state.step))

    if fitting == settings.steps:
        print(f"time     {rate:,.0f} tokens/s: all {fitting:,} steps take {length(fitting)}")
    else:
        of_all = f" of the {steps:,} steps of {settings.preset}" if fitting < steps else " steps"
        more = f", --preset {settings.preset} takes {length(steps)}" if fitting < steps else ""
        again = (
            f"--preset {settings.preset} --steps {fitting} --eval-every {settings.eval_every} repeats this run{more}"
        )
        print(f"time     {rate:,.0f} tokens/s: {fitting:,}{of_all} fit into {settings.minutes:g} minutes ({again})")
    settings.steps = fitting


def seconds_of(task: Task) -> float:
    """Wall-clock seconds that a call takes."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def two_digits(number: int) -> int:
    """The number rounded down to two digits: 437 -> 430."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def in_minutes(seconds: float) -> str:
    """`about 13 minutes`, rounded up, or seconds if there are few."""
    return f"about {seconds:.0f} seconds" if seconds < 90 else f"about {math.ceil(seconds / 60):,} minutes"
