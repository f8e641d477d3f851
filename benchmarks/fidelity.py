"""Whether the fp32 step time that is reported is the one that a hand-written loop sees.

Alternates, in one process, between a paired measurement and a loop that synchronizes the device
around the same number of steps. Wanted: a ratio from 0.98 to 1.02.
"""

import argparse
import statistics
import time

import torch
from steps import STEPS

from pytest_amp.run import timing
from pytest_amp.run.arm import Arm, Workbench
from pytest_amp.run.device import choose
from pytest_amp.run.progress import Progress


def reported(setup, device, pairs):
    """The median fp32 step time of a paired measurement, and its block's steps."""
    bench = Workbench(setup, device, device.default_dtype(), 0, Progress())
    plan = timing.Plan(3, lambda ratios, _: "done" if len(ratios) >= pairs else None)
    run = timing.run(bench, plan)
    return statistics.median(run.fp32_step_s), run.block_steps


def by_hand(setup, device, blocks, steps):
    """The median step time of as many blocks, written down plainly."""
    torch.manual_seed(0)
    step = setup(Arm("fp32", device, device.default_dtype()))
    for _ in range(3):
        step()
    times = []
    for _ in range(blocks):
        step()
        device.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        device.synchronize()
        times.append((time.perf_counter() - began) / steps)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose(options.device)
    print(f"{device.name()}, torch {torch.__version__}, {options.rounds} rounds")
    for name, setup in STEPS.items():
        ratios = []
        for number in range(options.rounds):
            ours, steps = reported(setup, device, options.pairs)
            hand = by_hand(setup, device, options.pairs, steps)
            if number % 2:  # the other order, against drift
                hand = by_hand(setup, device, options.pairs, steps)
                ours, _ = reported(setup, device, options.pairs)
            ratios.append(ours / hand)
        low, high = min(ratios), max(ratios)
        print(
            f"{name:<12} {1000 * hand:.3f} ms/step; reported / by hand: "
            f"median {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}; wanted 0.98 to 1.02)"
        )


if __name__ == "__main__":
    main()
