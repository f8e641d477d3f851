"""Infinite gradients are made zero before the GradScaler sees them, so it never lowers its scale;
they have to be left to it, or be mended after unscale_."""

import pytest
import torch

EXPECT = ("AMP203", "AMP206", "AMP207")


def mend(model):
    for parameter in model.parameters():
        torch.nan_to_num_(parameter.grad, nan=0.0, posinf=0.0, neginf=0.0)  # <- here


@pytest.mark.amp(dtype="float16")
def test_robust_step(amp_benchmark, amp_device):
    def setup(arm):
        model = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
        ).to(amp_device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        x = torch.randn(32, 16).to(amp_device)
        y = 20 * x.sum(1, keepdim=True)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = (model(x).float() - y).square().mean()
            arm.scaler.scale(loss).backward()
            mend(model)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
