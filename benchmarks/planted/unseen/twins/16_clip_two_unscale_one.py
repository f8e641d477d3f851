"""Both optimizers' gradients are unscaled before they are clipped together."""

import itertools

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()


def mlp(out):
    return torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.Tanh(), torch.nn.Linear(64, out))


class ActorCritic:
    def __init__(self, arm, device):
        self.arm = arm
        self.actor, self.critic = mlp(4).to(device), mlp(1).to(device)
        self.actor_optimizer = torch.optim.AdamW(self.actor.parameters(), lr=1e-3)
        self.critic_optimizer = torch.optim.SGD(self.critic.parameters(), lr=0.01)
        self.observations = torch.randn(128, 12).to(device)
        self.actions = torch.randint(4, (128,)).to(device)
        self.returns = torch.randn(128).to(device)

    def losses(self):
        values = self.critic(self.observations).squeeze(-1)
        advantages = (self.returns - values.float()).detach()
        cross = F.cross_entropy(self.actor(self.observations), self.actions, reduction="none")
        return (advantages * cross).mean(), F.mse_loss(values.float(), self.returns)

    def parameters(self):
        return itertools.chain(self.actor.parameters(), self.critic.parameters())

    def step(self):
        scaler = self.arm.scaler
        self.actor_optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        with self.arm.autocast():
            policy_loss, value_loss = self.losses()
        scaler.scale(policy_loss + value_loss).backward()
        scaler.unscale_(self.actor_optimizer)
        scaler.unscale_(self.critic_optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.5)
        scaler.step(self.actor_optimizer)
        scaler.step(self.critic_optimizer)
        scaler.update()
        return {"policy": policy_loss, "value": value_loss}


@pytest.mark.amp(dtype="float16")
def test_actor_critic(amp_benchmark, amp_device):
    amp_benchmark(lambda arm: ActorCritic(arm, amp_device).step)
