"""One autocast region holds all update epochs, so each epoch uses the casts of the weights from
before the first update; open a region per forward pass.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP103",)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(12, 32)
        self.policy, self.value = nn.Linear(32, 4), nn.Linear(32, 1)

    def forward(self, observation):
        hidden = torch.tanh(self.trunk(observation))
        return self.policy(hidden).float(), self.value(hidden).float().squeeze(-1)


class Agent:
    epochs = 4

    def __init__(self, arm):
        self.arm, self.model = arm, ActorCritic().to(arm.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        self.observation = torch.randn(64, 12).to(arm.device)
        self.action = torch.randint(4, (64,)).to(arm.device)
        self.returns = self.observation.sum(1) / 4

    def loss(self):
        logits, value = self.model(self.observation)
        weight = (self.returns - value).detach().sigmoid()
        policy = (F.cross_entropy(logits, self.action, reduction="none") * weight).mean()
        return policy + 0.5 * F.mse_loss(value, self.returns)

    def apply(self, loss):
        self.optimizer.zero_grad()
        self.arm.scaler.scale(loss).backward()
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()

    def update(self):
        with self.arm.autocast():  # <- here
            for _ in range(self.epochs):
                loss = self.loss()  # <- here
                self.apply(loss)
        return loss.detach()


@pytest.mark.amp(dtype="bfloat16")
def test_agent(amp_benchmark):
    amp_benchmark(lambda arm: Agent(arm).update)
