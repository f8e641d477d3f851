"""Towers run in threads of their own, which do not inherit autocast, so they stay in float32;
enter autocast in each thread.
"""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP110",)


def parallel_apply(modules, inputs):
    outputs = [None] * len(modules)

    def worker(index):
        outputs[index] = modules[index](inputs)  # <- here

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(len(modules))]  # <- here
    for thread in threads:
        thread.start()  # <- here
    for thread in threads:
        thread.join()
    return outputs


class Ensemble(nn.Module):
    def __init__(self, towers=3):
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(towers)
        )
        self.head = nn.Linear(16 * towers, 8)

    def forward(self, x):
        return self.head(torch.cat(parallel_apply(self.towers, x), dim=1))  # <- here


@pytest.mark.amp(dtype="bfloat16")
def test_ensemble(amp_benchmark):
    def setup(arm):
        model = Ensemble().to(arm.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        x = torch.randn(64, 32).to(arm.device)
        y = x[:, :8].argmax(1)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
