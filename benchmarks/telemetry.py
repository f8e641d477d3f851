"""What AmpTelemetry's meter costs a step, on a 4-layer, 256-wide transformer with a GradScaler.

Each round times a bare step, one that is watched as every step is, and one that is looked at, which
is one in fifty by default.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.telemetry import Meter


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose(options.device)
    kind = device.type
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(8, 128, 256, device=kind)
    scaler = torch.amp.GradScaler(kind, init_scale=1024.0)
    meter = Meter(model, device.default_dtype())
    meter.begin(scaler)

    def step(watched, looked_at):
        device.synchronize()
        began = time.perf_counter()
        if looked_at:
            meter.look()
        with torch.autocast(kind, device.default_dtype()):
            loss = F.mse_loss(model(x), x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if watched:
            meter.stepped(scaler)
        device.synchronize()
        return time.perf_counter() - began

    print(f"{device.name()}, torch {torch.__version__}, {options.rounds} rounds")
    for _ in range(3):
        step(watched=True, looked_at=True)
    kinds = {"bare, again": (False, False), "watched": (True, False), "looked at": (True, True)}
    ratios = {name: [] for name in kinds}
    for _ in range(options.rounds):
        bare = step(watched=False, looked_at=False)
        for name, how in kinds.items():
            ratios[name].append(step(*how) / bare)
    for name, found in ratios.items():
        low, _, high = statistics.quantiles(found, n=4)
        print(f"{name:<11} / bare: median {statistics.median(found):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
