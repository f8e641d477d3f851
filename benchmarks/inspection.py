"""What the inspected step costs against a plain fp32 step, on a 4-layer, 256-wide transformer."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from steps import default_recipes, training_step
from torch import nn

from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.watch.operators import OpRecord
from pytest_amp.lab.workbench import Workbench
from pytest_amp.progress import Progress


def transformer(arm):
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(arm.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(8, 128, 256, device=arm.device)

    return training_step(arm, optimizer, lambda: F.mse_loss(model(x), x))


def seconds(step):
    began = time.perf_counter()
    loss = step()
    return time.perf_counter() - began, float(loss.detach())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose(options.device)
    print(f"{device.name()}, torch {torch.__version__}, {options.rounds} rounds")
    for name in ("fp32", "amp"):
        bench = Workbench(transformer, device, default_recipes(device), 0, Progress())
        with bench.built(name) as plain, bench.built(name) as watched:
            for resident in (plain, watched):
                with resident.active():
                    resident.step()
            ratios, same = [], True
            for _ in range(options.rounds):
                with plain.active():
                    bare_s, loss = seconds(plain.step)
                record = OpRecord()
                with watched.active(), record.watching():
                    watched_s, watched_loss = seconds(watched.step)
                record.operators()
                ratios.append(watched_s / bare_s)
                same &= loss == watched_loss
        identical = "bit-identical" if same else "DIFFERENT"
        print(
            f"{name:<5} inspected / plain: median {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}; wanted <= 1.5), losses {identical}"
        )


if __name__ == "__main__":
    main()
