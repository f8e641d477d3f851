"""Whether healthy small models pass the default parity gate, and no rule calls them faulty.

Three models, fresh batches and one repeated batch, SGD and AdamW, both dtypes (float16 with the
GradScaler's default scale), each from many seeds. Wanted: no failing run, no finding of severity
error. Inconclusive runs are counted. Last, two faulty steps, which must fail.
"""

import argparse
import itertools
import math
import time
from collections import Counter

import torch
import torch.nn.functional as F
from steps import training_step
from torch import nn

from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job
from pytest_amp.lab.machine.device import choose
from pytest_amp.progress import Progress
from pytest_amp.settings import parsers
from pytest_amp.settings.resolved import resolve

BATCH, CLASSES = 32, 10


class Mlp(nn.Module):
    shape = (32,)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, CLASSES)
        )

    def forward(self, x):
        return self.layers(x)


class Cnn(nn.Module):
    shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, CLASSES),
        )

    def forward(self, x):
        return self.layers(x)


class Transformer(nn.Module):
    shape = (8, 16)

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.layers(x).mean(1))


MODELS = {"mlp": Mlp, "cnn": Cnn, "transformer": Transformer}
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=2e-3),
}


def batches(shape, fresh):
    """Inputs around a mean per class, so that there is something to learn."""
    means = torch.randn(CLASSES, *shape)

    def draw():
        labels = torch.randint(CLASSES, (BATCH,))
        return means[labels] + torch.randn(BATCH, *shape), labels

    if fresh:
        return iter(draw, None)
    return itertools.repeat(draw())


def healthy(model, optimizer, fresh):
    def setup(arm):
        data = batches(MODELS[model].shape, fresh)
        net = MODELS[model]()

        def loss_of():
            inputs, labels = next(data)
            return F.cross_entropy(net(inputs), labels)

        return training_step(arm, OPTIMIZERS[optimizer](net.parameters()), loss_of)

    return setup


def not_unscaled(arm):
    """SGD on gradients that are still multiplied by the loss scale."""
    data, net = batches(Mlp.shape, fresh=True), Mlp()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    scale = 64.0 if arm.enabled else 1.0

    def step():
        optimizer.zero_grad(set_to_none=True)
        inputs, labels = next(data)
        with arm.autocast():
            loss = F.cross_entropy(net(inputs), labels)
        (scale * loss).backward()
        optimizer.step()
        return loss

    return step


class Subtraction(nn.Module):
    """A layer norm whose variance is E[x^2] - E[x]^2, in whatever dtype x comes in."""

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) * (variance.clamp(min=0) + 1e-3).rsqrt()


def variance_by_subtraction(arm):
    """Cancellation: the activations' mean is large against their spread."""
    data = batches(Mlp.shape, fresh=True)
    first = nn.Linear(32, 64)
    nn.init.constant_(first.bias, 30.0)
    net = nn.Sequential(first, Subtraction(), nn.ReLU(), nn.Linear(64, CLASSES))

    def loss_of():
        inputs, labels = next(data)
        return F.cross_entropy(net(inputs), labels)

    return training_step(arm, OPTIMIZERS["sgd"](net.parameters()), loss_of)


FAULTY = {each.__name__: each for each in (not_unscaled, variance_by_subtraction)}


def row(label, dtype, setup, seeds, device):
    """Run one configuration from each seed, print its line, and return the failures."""
    verdicts, found = Counter(), Counter()
    differences, floors, failures = [], [], []
    for seed in seeds:
        options = resolve([("cli", {"static": True, "dtype": dtype, "seed": seed})])
        report = experiment.run(Job(label, setup, device, options), Progress())
        gate = report.gate("loss_diff")
        verdicts[gate.verdict] += 1
        found.update(finding.code for finding in report.findings)
        differences.append(report.loss_diff)
        floors.append(report.noise_floor)
        if gate.verdict != "pass":
            failures.append(f"    seed {seed}: {gate.verdict}: {gate.reason}")
    codes = " ".join(f"{code}:{count}" for code, count in sorted(found.items())) or "none"
    print(
        f"{label:<32} {dtype:<9} {len(differences):>4} {verdicts['fail']:>5} "
        f"{verdicts['inconclusive']:>7} {_worst(differences):>10} {_worst(floors):>10}  {codes}",
        flush=True,
    )
    print(*failures, sep="\n", end="\n" if failures else "", flush=True)
    return verdicts, found


def _worst(values):
    return f"{100 * max(values, key=lambda v: math.inf if math.isnan(v) else v):.3f}%"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device, seeds = choose(arguments.device), range(arguments.seeds)
    began = time.perf_counter()
    print(f"{device.name()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':<32} {'dtype':<9} runs  fail inconcl. worst diff worst floor  findings", flush=True)
    verdicts, found = Counter(), Counter()
    for model, fresh, optimizer, dtype in itertools.product(
        MODELS, (True, False), OPTIMIZERS, parsers.DTYPES
    ):
        label = f"{model}, {'fresh' if fresh else 'repeated'}, {optimizer}"
        more, codes = row(label, dtype, healthy(model, optimizer, fresh), seeds, device)
        verdicts += more
        found += codes
    print(
        f"healthy: {verdicts.total()} runs, {verdicts['fail']} fail, "
        f"{verdicts['inconclusive']} inconclusive, findings: {dict(found) or 'none'}"
    )
    for (label, setup), dtype in itertools.product(FAULTY.items(), parsers.DTYPES):
        row(f"faulty: {label}", dtype, setup, list(seeds)[:5], device)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
