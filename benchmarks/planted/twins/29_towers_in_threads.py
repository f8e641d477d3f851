"""Towers run in threads that enter autocast."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


def parallel_apply(modules, inputs, autocast):
    outputs = [None] * len(modules)

    def worker(index):
        with autocast():
            outputs[index] = modules[index](inputs)

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(len(modules))]
    for thread in threads:
        thread.start()
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

    def forward(self, x, autocast):
        return self.head(torch.cat(parallel_apply(self.towers, x, autocast), dim=1))


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
                loss = F.cross_entropy(model(x, arm.autocast), y)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
