"""What timing costs beyond the steps that it runs. Wanted: at most 1.1 times their wall time.

The timing phase runs blocks of both arms by turns, as a test has it, for some seconds. Then the
same blocks run again in the same order with nothing around them. Printed: the ratio of both wall
times, by step, the median of some rounds, and their range. The steps are those of verdicts.py.
"""

import argparse
import random
import statistics
import time
from contextlib import ExitStack

import torch
from forecast import setup_of
from verdicts import models

from pytest_amp.experiment.job import Job
from pytest_amp.experiment.plan import limits_of, plan_of
from pytest_amp.experiment.run import laboratory
from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.phases import timing
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve


def bare_s(bench, pairs, steps):
    """Return the seconds of a step in so many pairs of blocks, with each one's untimed step."""
    with ExitStack() as stack:
        arms = [stack.enter_context(bench.built(name)) for name in ("fp32", "amp")]
        for arm in arms:
            with arm.active():
                for _ in range(3):
                    arm.made()
        order = random.Random(bench.seed)
        began = time.perf_counter()
        for _ in range(pairs):
            first = order.randrange(2)
            for side in (first, 1 - first):
                step = arms[side].made
                for _ in range(steps + 1):
                    step()
        return (time.perf_counter() - began) / (2 * pairs * (steps + 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-time", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = choose("cpu")
    print(f"{device.name()}, torch {torch.__version__}, one thread")
    for name, case in models().items():
        # A threshold that it does not decide within the time.
        settings = resolve([("cli", {"max_time": options.max_time, "error_rate": 1e-9,
                                     "min_speedup": 1.0})])  # fmt: skip
        job = Job(name, setup_of(*case), device, settings)
        found = []
        with laboratory(job, Progress()) as bench:
            limits = limits_of(settings, device.names())
            for _ in range(options.rounds):
                plan = plan_of(bench, settings, limits)
                before = bench.steps
                seen = timing.run(bench, timing.Plan(plan.warmup, plan.stop, show=plan.show))
                step_s = seen.elapsed_s / (bench.steps - before - 2 * plan.warmup)
                found.append(step_s / bare_s(bench, len(seen.ratios), seen.block_steps))
        print(f"{name:<13} {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}),"
              f" {len(seen.ratios)} pairs of {seen.block_steps} steps", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
