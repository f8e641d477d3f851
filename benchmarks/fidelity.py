"""Whether the fp32 step time that is reported is the one that a hand-written loop sees.

Both measure in one process, in turns: after each pair of blocks comes one block of a plain loop
over a model of its own, which synchronizes the device at its edges. Wanted: a ratio from 0.98 to
1.02.
"""

import argparse
import statistics
import time

import torch
from steps import STEPS, default_recipes

from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.phases import timing
from pytest_amp.lab.workbench import Workbench
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipe


class ByHand:
    """The hand-written loop: a block of steps at a time, seconds per step in `times`."""

    def __init__(self, setup, device):
        torch.manual_seed(0)
        self.step = setup(Arm("fp32", device, Recipe()))
        self.device = device
        self.times = []

    def block(self, steps):
        self.step()
        self.device.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.device.synchronize()
        self.times.append((time.perf_counter() - began) / steps)


def run(setup, device, pairs, after_each_pair=lambda: None):
    def stop(timed):
        after_each_pair()
        return "done" if len(timed.ratios) >= pairs else None

    bench = Workbench(setup, device, default_recipes(device), 0, Progress())
    return timing.run(bench, timing.Plan(3, stop))


def ratio(setup, device, pairs):
    """Reported / by hand, of the median step times; and the latter, in seconds."""
    steps = run(setup, device, 1).block_steps
    loop = ByHand(setup, device)
    reported = run(setup, device, pairs, lambda: loop.block(steps))
    by_hand = statistics.median(loop.times)
    return statistics.median(reported.fp32_step_s) / by_hand, by_hand


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose(options.device)
    print(f"{device.name()}, torch {torch.__version__}, {options.rounds} rounds")
    for name, setup in STEPS.items():
        ratios, by_hand = zip(
            *(ratio(setup, device, options.pairs) for _ in range(options.rounds)), strict=True
        )
        print(
            f"{name:<12} {1000 * statistics.median(by_hand):.3f} ms/step; reported / by hand: "
            f"median {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}; wanted 0.98 to 1.02)"
        )


if __name__ == "__main__":
    main()
