"""The density is computed in float32, and its correction by softplus."""

import math

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()


class Actor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU())
        self.mean = torch.nn.Linear(64, 4)
        self.log_std = torch.nn.Linear(64, 4)

    def forward(self, observation, noise):
        hidden = self.body(observation)
        mean = self.mean(hidden).float()
        log_std = self.log_std(hidden).float().clamp(-5, 2)
        noise = noise.to(mean.dtype)
        raw = mean + log_std.exp() * noise
        action = torch.tanh(raw)
        log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return action, log_prob.float().sum(-1)


@pytest.mark.amp(dtype="bfloat16")
def test_soft_actor(amp_benchmark, amp_device):
    def setup(arm):
        actor = Actor().to(amp_device)
        torch.nn.init.constant_(actor.log_std.bias, 1.0)
        critic = torch.nn.Linear(20, 1).requires_grad_(False).to(amp_device)
        optimizer = torch.optim.AdamW(actor.parameters(), lr=3e-4)
        observation = torch.randn(128, 16).to(amp_device)
        noise = torch.randn(128, 4).to(amp_device)

        def actor_loss():
            action, log_prob = actor(observation, noise)
            value = critic(torch.cat([observation, action], dim=-1)).squeeze(-1)
            return (0.2 * log_prob - value).mean()

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = actor_loss()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
