"""In bfloat16 many positions between two atoms round to an atom, and what is between it and itself
is nothing, so probability is lost; positions have to be in float32."""

import copy

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP304", "loss gate")
ATOMS, LOW, HIGH = 51, -10.0, 10.0


def project(probabilities, rewards, discount=0.97):
    dtype = probabilities.dtype
    support = torch.linspace(LOW, HIGH, ATOMS, dtype=dtype, device=rewards.device)  # <- here
    returns = (rewards[:, None].to(dtype) + discount * support).clamp(LOW, HIGH)  # <- here
    position = (returns - LOW) * ((ATOMS - 1) / (HIGH - LOW))  # <- here
    below, above = position.floor(), position.ceil()  # <- here
    target = torch.zeros_like(probabilities)
    target.scatter_add_(1, below.long(), probabilities * (above - position))  # <- here
    target.scatter_add_(1, above.long(), probabilities * (position - below))  # <- here
    return target


@pytest.mark.amp(dtype="bfloat16")
def test_categorical_values(amp_benchmark, amp_device):
    def setup(arm):
        online = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, ATOMS)
        ).to(amp_device)
        target = copy.deepcopy(online).requires_grad_(False)
        optimizer = torch.optim.AdamW(online.parameters(), lr=1e-3)
        now, later = torch.randn(2, 128, 16).to(amp_device)
        rewards = 0.2 * torch.rand(128).to(amp_device)  # no return leaves the range

        def value_loss():
            with torch.no_grad():
                wanted = project(F.softmax(target(later), dim=-1), rewards)
            return -(wanted * F.log_softmax(online(now), dim=-1)).sum(-1).mean()

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = value_loss()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
