"""Only the frozen weights go to the amp dtype, and the statistics stay in float32."""

import pytest
import torch

EXPECT = ()


class FrontEnd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(8, 16).requires_grad_(False)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        x = self.project(x)
        self.count += len(x)
        self.mean += (x.detach().float().mean(0) - self.mean) * (len(x) / self.count)
        return x - self.mean


@pytest.mark.amp(dtype="float16")
def test_front_end(amp_benchmark, amp_device):
    def setup(arm):
        front = FrontEnd().to(amp_device)
        front.project.to(arm.dtype)
        head = torch.nn.Linear(16, 1).to(amp_device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
        x = torch.randn(8192, 8).to(amp_device)
        y = x.sum(1, keepdim=True)

        def loss_of(prediction):
            return (prediction.float() - y).square().mean()

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = loss_of(head(front(x.to(arm.dtype))))
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
