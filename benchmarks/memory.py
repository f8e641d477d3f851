"""How far repeated readings of a peak vary, on a CPU whose allocator has no counter of its own.

Builds each arm afresh, runs a few steps, and reads the peak, again and again in one process.
Wanted: one reading, however often it is taken.
"""

import argparse

import torch
from steps import STEPS, default_recipes

from pytest_amp import units
from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.phases import parity
from pytest_amp.lab.workbench import Workbench
from pytest_amp.progress import Progress


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose(options.device)
    print(f"{device.name()}, torch {torch.__version__}, {options.rounds} readings each")
    for name, setup in STEPS.items():
        bench = Workbench(setup, device, default_recipes(device), 0, Progress())
        for arm in ("fp32", "amp"):
            peaks = [
                parity.run(bench, arm, options.steps)[0].peak_bytes for _ in range(options.rounds)
            ]
            low, high = min(peaks), max(peaks)
            print(
                f"{name:<12} {arm:<5} {units.size(low)} to {units.size(high)}, "
                f"{len(set(peaks))} distinct, spread {100 * (high / low - 1):.3f}%"
            )


if __name__ == "__main__":
    main()
