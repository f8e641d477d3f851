"""What a static test costs under CUDA's rules, against as many plain float32 steps, on one thread.

Wanted: at most 4 times. The second figure is a step in float16 under the rules, against float32's.
"""

from __future__ import annotations

import itertools
import statistics
import time

import torch
import torch.nn.functional as F
from steps import training_step
from torch import nn

from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job
from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.policy import cuda_rules
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipe
from pytest_amp.settings.resolved import resolve


def block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        sizes = [width * 2**n for n in range(4)]
        self.down = nn.ModuleList(block(a, b) for a, b in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(block(a + b, a) for a, b in itertools.pairwise(sizes))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        kept = []
        for number, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        x = kept.pop()
        for layer in reversed(self.up):
            x = layer(torch.cat([kept.pop(), F.interpolate(x, scale_factor=2)], 1))
        return self.head(x)


class GPT(nn.Module):
    def __init__(self, width=128, layers=4):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.embedding = nn.Embedding(128, width)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 128)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.layers(self.embedding(tokens), mask, is_causal=True)).transpose(1, 2)


class ViT(nn.Module):
    def __init__(self, width=128, layers=4):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, F.gelu, batch_first=True)
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(128, 64), nn.LSTM(64, 128, 2, batch_first=True)
        self.head = nn.Linear(128, 128)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0]).transpose(1, 2)


def tokens():
    return torch.randint(128, (8, 64)), torch.randint(128, (8, 64))


MODELS = {
    "U-Net": (UNet, lambda: (torch.randn(2, 3, 32, 32), torch.randint(2, (2, 32, 32)))),
    "ViT": (ViT, lambda: (torch.randn(8, 3, 64, 64), torch.randint(10, (8,)))),
    "GPT": (GPT, tokens),
    "LSTM": (LSTM, tokens),
}


def step_of(arm, build, data):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs, targets = data()
    return training_step(arm, optimizer, lambda: F.cross_entropy(model(inputs), targets))


def seconds(step, count):
    began = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - began


def main():
    torch.set_num_threads(1)
    print(f"{Device(torch.device('cpu')).name()}, torch {torch.__version__}, one thread")
    settings = resolve([("cli", {"static": True, "policy": "cuda", "device": "cpu"})])
    for name, (build, data) in MODELS.items():
        steps = 0

        def setup(arm, build=build, data=data):
            step = step_of(arm, build, data)

            def counted():
                nonlocal steps
                steps += 1
                return step()

            return counted

        began = time.perf_counter()
        job = Job(name, setup, Device(torch.device("cpu")), settings)
        report = experiment.run(job, Progress())
        took = time.perf_counter() - began
        device = Device(torch.device("cpu"))
        plain = step_of(Arm("fp32", device, Recipe()), build, data)
        half = step_of(Arm("amp", device, Recipe(autocast_dtype="float16")), build, data)
        ratios = []
        with cuda_rules():
            seconds(half, 2)
        seconds(plain, 2)
        for _ in range(7):
            with cuda_rules():
                slow = seconds(half, 3)
            ratios.append(slow / seconds(plain, 3))
        bare = seconds(plain, 10) / 10
        print(
            f"{name:<6} {report.verdict}: {steps} steps in {took:.1f} s, "
            f"{took / (steps * bare):.2f} times as long as plain float32 steps; "
            f"a step {statistics.median(ratios):.2f} times",
            flush=True,
        )


if __name__ == "__main__":
    main()
