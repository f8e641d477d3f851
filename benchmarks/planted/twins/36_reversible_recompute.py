"""A reversible block restores autocast when it computes its branches again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, branch, x):
        ctx.branch = branch
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(x)
        with torch.no_grad():
            return branch(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        enabled, dtype = ctx.autocast
        with torch.enable_grad(), torch.autocast("cpu", dtype=dtype, enabled=enabled):
            out = ctx.branch(x)
        torch.autograd.backward(out, grad.to(out.dtype))
        return None, x.grad


class ReversibleBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.g = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())

    def forward(self, x):
        left, right = x.chunk(2, dim=-1)
        left = left + Recompute.apply(self.f, right)
        right = right + Recompute.apply(self.g, left)
        return torch.cat([left, right], dim=-1)


@pytest.mark.amp(dtype="bfloat16")
def test_reversible(amp_benchmark):
    def setup(arm):
        blocks = [ReversibleBlock(16), ReversibleBlock(16)]
        model = nn.Sequential(nn.Linear(20, 32), *blocks, nn.Linear(32, 4)).to(arm.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        x = torch.randn(64, 20).to(arm.device)
        y = x[:, :4].argmax(1)

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
