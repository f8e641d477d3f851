"""What one amp test costs beside the builds and steps that it runs.

The builds and steps of an amp test are counted, then run bare, the same number per arm.
Wanted: at most 1.3 times the bare time.
"""

import argparse
import statistics
import time
from collections import Counter

import torch
from steps import STEPS, default_recipes

from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job
from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.device import choose
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve


def counted(setup, builds, steps):
    def counting_setup(arm):
        builds[arm.name] += 1
        step = setup(arm)

        def counting_step():
            steps[arm.name] += 1
            return step()

        return counting_step

    return counting_setup


def amp_test(setup, device, options):
    builds, steps = Counter(), Counter()
    test = Job("cost", counted(setup, builds, steps), device, options)
    began = time.perf_counter()
    experiment.run(test, Progress())
    return time.perf_counter() - began, builds, steps


def bare(setup, device, builds, steps):
    recipes = default_recipes(device)
    began = time.perf_counter()
    for name in builds:
        for _ in range(builds[name]):
            step = setup(Arm(name, device, getattr(recipes, name)))
        for _ in range(steps[name]):
            step()
        device.synchronize()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose(arguments.device)
    print(f"{device.name()}, torch {torch.__version__}, {arguments.rounds} rounds")
    for label, given in (
        ("gated", {"min_speedup": 0.01}),
        ("ungated", {}),
        ("static", {"static": True}),
    ):
        options = resolve([("cli", given)])
        for name, setup in STEPS.items():
            amp_test(setup, device, options)
            ratios = []
            for _ in range(arguments.rounds):
                wall, builds, steps = amp_test(setup, device, options)
                ratios.append(wall / bare(setup, device, builds, steps))
            ratio = statistics.median(ratios)
            print(
                f"{label:<8} {name:<12} {builds.total()} builds, {steps.total()} steps, "
                f"{wall:.2f} s; wall / bare: median {ratio:.2f} (wanted: <= 1.3)"
            )


if __name__ == "__main__":
    main()
