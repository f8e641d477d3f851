"""How far repeated readings of a peak vary, and whether the order of the arms matters.

Builds both arms afresh, in random order, runs a few steps of each, and reads the peak and the
losses, again and again in one process. Between them, what an earlier test may leave behind: a model
in a reference cycle, or a step that raised. Wanted: one reading of each peak, and one loss curve,
however often they are taken and in whatever order.
"""

import argparse
import random
from collections import defaultdict
from contextlib import suppress

import torch
from parity import setup_of
from parity_models import MODELS
from steps import STEPS, default_recipes

from pytest_amp import units
from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.phases import parity
from pytest_amp.lab.workbench import Workbench
from pytest_amp.progress import Progress


class Litter:
    """A model's gradients in a reference cycle, which only the garbage collector frees."""

    def __init__(self, device):
        self.model = torch.nn.Linear(256, 256).to(device)
        self.model(torch.randn(64, 256, device=device)).sum().backward()
        self.itself = self


def raising(arm):
    kept = torch.randn(256, 256, device=arm.device)

    def step():
        raise ValueError(kept)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, draw = choose(options.device), random.Random(0)
    print(f"{device.name()}, torch {torch.__version__}, {options.rounds} readings each")
    for name, setup in {**STEPS, **{name: setup_of(name) for name in MODELS}}.items():
        bench = Workbench(setup, device, default_recipes(device), 0, Progress())
        broken = Workbench(raising, device, default_recipes(device), 0, Progress())
        peaks, curves = defaultdict(set), defaultdict(set)
        for _ in range(options.rounds):
            arms = ["fp32", "amp"]
            draw.shuffle(arms)
            for place, arm in enumerate(arms):
                if draw.random() < 0.5:
                    Litter(device.torch)
                if draw.random() < 0.2:
                    with suppress(ValueError):
                        parity.run(broken, arm, 1)
                run, _ = parity.run(bench, arm, options.steps)
                peaks[arm, place].add(run.peak_bytes)
                curves[arm].add(tuple(tuple(curve) for curve in run.losses.values()))
        readings = []
        for arm in ("fp32", "amp"):
            seen = peaks[arm, 0] | peaks[arm, 1]
            low, high = min(seen), max(seen)
            readings.append(
                f"{arm} {units.size(low)}, {len(seen)} distinct, spread {high / low - 1:.3%}, "
                f"{'the same' if peaks[arm, 0] == peaks[arm, 1] else 'OTHERS'} in both orders, "
                f"{units.plural(len(curves[arm]), 'loss curve')}"
            )
        print(f"{name:<12} {'; '.join(readings)}", flush=True)


if __name__ == "__main__":
    main()
