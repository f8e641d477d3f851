"""Sharpness-aware minimisation leaves the ascent out if its norm is not finite."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class SAM:
    def __init__(self, parameters, rho=0.05):
        self.parameters, self.rho, self.moved = list(parameters), rho, []

    @torch.no_grad()
    def ascend(self):
        norm = torch.stack([p.grad.norm() for p in self.parameters]).norm()
        self.moved = []
        if not torch.isfinite(norm):
            return
        for parameter in self.parameters:
            move = parameter.grad * (self.rho / (norm + 1e-12))
            parameter.add_(move)
            self.moved.append((parameter, move))

    @torch.no_grad()
    def descend(self):
        for parameter, move in self.moved:
            parameter.sub_(move)


@pytest.mark.amp(dtype="float16")
def test_sam(amp_benchmark):
    def setup(arm):
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(arm.device)
        optimizer, sam = torch.optim.SGD(model.parameters(), lr=0.05), SAM(model.parameters())
        x = torch.randn(64, 16).to(arm.device)
        y = x[:, :4].argmax(1)

        def backward():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            arm.scaler.scale(loss).backward()
            return loss

        def step():
            loss = backward()
            sam.ascend()
            backward()
            sam.descend()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
