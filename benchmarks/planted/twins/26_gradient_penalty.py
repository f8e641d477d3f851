"""A gradient penalty divides its gradients by the loss scale."""

import pytest
import torch
from torch import nn

EXPECT = ()


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x):
        return self.layers(x).squeeze(-1)


def gradient_penalty(critic, real, fake, mix, arm):
    x = (mix * real + (1 - mix) * fake).requires_grad_()
    with torch.autocast(x.device.type, enabled=False):
        score = critic(x).sum()
    scaled = torch.autograd.grad(arm.scaler.scale(score), x, create_graph=True)[0]
    gradients = scaled / arm.scaler.get_scale()
    return ((gradients.norm(dim=1) - 1) ** 2).mean()


@pytest.mark.amp(dtype="float16")
def test_wgan_critic(amp_benchmark):
    def setup(arm):
        critic = Critic().to(arm.device)
        optimizer = torch.optim.Adam(critic.parameters(), lr=3e-4, betas=(0.0, 0.9))
        real, fake = torch.randn(48, 8).to(arm.device) + 1, torch.randn(48, 8).to(arm.device)
        mix = torch.rand(48, 1).to(arm.device)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                distance = critic(fake).mean() - critic(real).mean()
            loss = distance + 10 * gradient_penalty(critic, real, fake, mix, arm)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
