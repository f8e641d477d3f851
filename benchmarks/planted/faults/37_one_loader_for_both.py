"""Both arms draw from one endless loader at module level, so the second begins where the first
stopped; make the loader in setup.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EXPECT = ("AMP003",)


def make_loader():
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(500, 10, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=32)


BATCHES = itertools.cycle(make_loader())  # <- here


@pytest.mark.amp(dtype="bfloat16")
def test_loaded(amp_benchmark):
    def setup(arm):
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3)).to(arm.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step():
            x, y = (each.to(arm.device) for each in next(BATCHES))  # <- here
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
