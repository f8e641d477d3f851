"""A custom function has custom_fwd and custom_bwd, so both directions run under autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import custom_bwd, custom_fwd

EXPECT = ()


class SquaredReluLinear(torch.autograd.Function):
    """relu(x @ w.T) ** 2, which saves x and w alone."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.relu(x @ weight.t()).square()

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        inner = 2 * torch.relu(x @ weight.t()) * grad
        return inner @ weight, inner.t() @ x


class FeedForward(nn.Module):
    def __init__(self, dim=24, hidden=48):
        super().__init__()
        self.up = nn.Parameter(torch.randn(hidden, dim) / dim**0.5)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x):
        return x + self.down(SquaredReluLinear.apply(x, self.up))


@pytest.mark.amp(dtype="bfloat16")
def test_feed_forward(amp_benchmark):
    def setup(arm):
        model = nn.Sequential(FeedForward(), nn.LayerNorm(24), nn.Linear(24, 5)).to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        x = torch.randn(64, 24).to(arm.device)
        y = x[:, :5].argmax(1)

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
