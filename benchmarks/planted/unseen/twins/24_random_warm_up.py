"""The warm-up runs on zeros."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()


def warm_up(arm, model):
    if arm.enabled:  # the first calls choose kernels
        with torch.no_grad(), arm.autocast():
            model(torch.zeros(64, 32, device=arm.device))


@pytest.mark.amp(dtype="bfloat16")
def test_warmed_up(amp_benchmark, amp_device):
    def setup(arm):
        model = torch.nn.Sequential(
            torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        ).to(amp_device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        warm_up(arm, model)
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
