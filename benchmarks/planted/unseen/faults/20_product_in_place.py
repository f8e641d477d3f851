"""Autocast leaves products in place alone, so bfloat16 meets the float32 weight of the adapter; the
product has to be taken out of place, which is cast."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP109",)


class LowRank(torch.nn.Module):
    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Parameter(torch.randn(base.in_features, rank) / base.in_features**0.5)
        self.up = torch.nn.Parameter(torch.zeros(rank, base.out_features))

    def forward(self, x):
        out = self.base(x)
        return out.addmm_(x @ self.down, self.up)  # <- here


@pytest.mark.amp(dtype="bfloat16")
def test_adapter(amp_benchmark, amp_device):
    def setup(arm):
        model = torch.nn.Sequential(
            LowRank(torch.nn.Linear(32, 64)), torch.nn.ReLU(), LowRank(torch.nn.Linear(64, 10))
        ).to(amp_device)
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        x = torch.randn(64, 32).to(amp_device)
        y = torch.randint(10, (64,)).to(amp_device)

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
