"""How many steps fit into the time: fixed once, when the warm-up ends.

Until then the schedule does not depend on the number of steps, so `--steps N` with the number found repeats the run.
"""

import math
import statistics
from argparse import Namespace

from tqdm import tqdm

from recipe import MAX_STEPS, MIN_WARMUP, preset_settings
from training.run import Run

EVALUATION_SHARE = 0.2  # of the time of a short run, at most
MIN_TOKENS = 300_000  # fewer teach too little, however often a short text is read for that


def plan_steps(run: Run, step_seconds: list[float], evaluation_seconds: float, elapsed: float) -> None:
    """Fix the number of steps, and how often to evaluate, and print both; without --minutes, only print the length.

    step_seconds: what each step so far took; evaluation_seconds: what one evaluation with its sample takes; elapsed:
    seconds since the command began.
    """
    settings, state = run.settings, run.state
    state.planned = True
    # the second half, because the first steps also load code; a run that was resumed just now has only its average
    seconds = max(1e-9, statistics.median(step_seconds[len(step_seconds) // 2 :] or [state.train_seconds / state.step]))
    rate = settings.batch_size * settings.max_seq / seconds
    if not settings.minutes:
        left = in_minutes(seconds * (settings.steps - state.step))
        tqdm.write(f"time     {rate:,.0f} tokens/s: {left}, evaluations not counted")
        return
    preset, new = preset_settings(settings.preset), state.step <= max(1, settings.warmup)
    evaluations = math.ceil(preset.steps / preset.eval_every)
    if settings.eval_every < MAX_STEPS:  # given: then each step has its share of an evaluation
        seconds += evaluation_seconds / settings.eval_every
        evaluations = 0
    most = int(EVALUATION_SHARE * (60 * settings.minutes - elapsed) / max(1e-9, evaluation_seconds))
    evaluations = min(evaluations, max(1, most))
    overhead = elapsed + evaluations * evaluation_seconds
    fitting = state.step + max(1, int((60 * settings.minutes - overhead) / seconds))
    fitting, evaluations = run.dist.from_first((min(fitting, settings.steps), evaluations))
    if evaluations:
        # none before a new run's plan: so it can be repeated
        settings.eval_every = max(settings.warmup + 1, math.ceil((fitting - (0 if new else state.step)) / evaluations))
    length = in_minutes(overhead + seconds * (fitting - state.step))
    plan = f"time     {rate:,.0f} tokens/s: {fitting:,} steps take {length}, set-up and evaluations included"
    if fitting < settings.steps:
        plan += f", as many as --minutes {settings.minutes:g} allows"
        if new:  # else it goes on from a run of another length
            repeat = f"--preset {settings.preset} --steps {fitting} --eval-every {settings.eval_every}"
            repeat += f" --warmup {settings.warmup}" if settings.warmup != preset.warmup else ""
            plan += f" ({repeat} repeats this run)"
    if overhead + seconds * (fitting - state.step) > 60 * settings.minutes:
        plan += "; set-up, warm-up and evaluation take longer: try more --minutes, or --eval-tokens 100000"
    tqdm.write(plan)
    settings.steps = fitting


def limit_epochs(settings: Namespace, given: set[str], tokens: int) -> None:
    """Let a run go through its text of so many tokens at most --epochs times, but read MIN_TOKENS.

    A run of few steps warms up in a tenth of them, and evaluates ten times. What the user has chosen stays.
    """
    read = settings.epochs * tokens
    if read < MIN_TOKENS and "epochs" not in given:
        read, settings.epochs = MIN_TOKENS, 0.0
    settings.steps = steps = min(settings.steps, math.ceil(read / (settings.batch_size * settings.max_seq)))
    if "warmup" not in given:
        settings.warmup = min(settings.warmup, max(MIN_WARMUP, steps // 10))
    if "eval_every" not in given and settings.eval_every < MAX_STEPS:  # else it is planned
        settings.eval_every = min(settings.eval_every, max(1, steps // 10))


def in_minutes(seconds: float) -> str:
    """`about 13 minutes`, rounded up, or `about 60 s`."""
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {math.ceil(seconds / 60):,} minutes"
