"""Whether regressions whose losses become small pass the default parity gate, and faulty ones fail.

Twenty healthy regressions on targets of several scales, each from many seeds, and the same with
faults that slow them down under amp. Printed per regression: verdicts, and how far amp ends from
fp32 in units of what rounding every product does to the loss.
"""

import argparse
import itertools
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job
from pytest_amp.lab.machine.device import choose
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve

LOSSES = {"mse": F.mse_loss, "huber": F.huber_loss, "l1": F.l1_loss}
NETS = {
    "linear": lambda: nn.Linear(16, 1),
    "mlp": lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)),
    "deep": lambda: nn.Sequential(
        nn.Linear(16, 32),
        nn.GELU(),
        nn.LayerNorm(32),
        nn.Linear(32, 32),
        nn.GELU(),
        nn.Linear(32, 1),
    ),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 16)), nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(112, 1)
    ),
}
SCALES = {"normalised": 1.0, "small": 0.05}
OPTIMIZERS = {
    "sgd": lambda params, slow: torch.optim.SGD(params, lr=0.05 * slow, momentum=0.9),
    "adamw": lambda params, slow: torch.optim.AdamW(params, lr=1e-2 * slow, weight_decay=0.0),
}


def regression(net, loss, scale, optimizer, slow=1.0):
    """`slow`: what the amp arm's learning rate is multiplied by."""

    def setup(arm):
        model = NETS[net]()
        x = torch.randn(64, 16)
        y = SCALES[scale] * torch.tanh(x @ torch.randn(16, 1) / 4)
        steps = OPTIMIZERS[optimizer](model.parameters(), slow if arm.enabled else 1.0)

        def step():
            steps.zero_grad(set_to_none=True)
            with arm.autocast():
                out = model(x)
            value = LOSSES[loss](out.float(), y)
            arm.scaler.scale(value).backward()
            arm.scaler.step(steps)
            arm.scaler.update()
            return value

        return step

    return setup


CASES = [
    *itertools.product(NETS, ("mse",), SCALES, OPTIMIZERS),
    ("mlp", "huber", "normalised", "adamw"),
    ("linear", "huber", "small", "sgd"),
    ("mlp", "l1", "small", "adamw"),
    ("linear", "l1", "normalised", "sgd"),
]


def measured(case, dtype, steps, seed, slow):
    options = {"static": True, "dtype": dtype, "seed": seed, "steps": steps}
    job = Job("x", regression(*case, slow), choose("cpu"), resolve([("cli", options)]))
    return experiment.run(job, Progress())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    print(f"{len(CASES)} regressions, {arguments.seeds} seeds, {arguments.steps} steps")
    for slow, dtype in itertools.product((1.0, 0.3, 0.1), ("bfloat16", "float16")):
        verdicts = Counter()
        for case in CASES:
            mine = Counter()
            for seed in range(arguments.seeds):
                report = measured(case, dtype, arguments.steps, seed, slow)
                mine[report.gate("loss_diff").verdict] += 1
            verdicts += mine
            if slow == 1.0 and set(mine) != {"pass"}:
                print("  ", *case, dict(mine))
        print(f"learning rate of amp times {slow:<4} {dtype:<9} {dict(verdicts)}", flush=True)


if __name__ == "__main__":
    main()
