"""The new log-probabilities of a PPO update are summed in bfloat16 and the old ones in float32,
so the ratio is off before anything has changed; use float32 logits for both.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP304", "AMP302", "loss gate")


class Policy(nn.Module):
    def __init__(self, words=40, dim=32):
        super().__init__()
        self.embed, self.mix = nn.Embedding(words, dim), nn.Linear(dim, dim)
        self.head = nn.Linear(dim, words)

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def sequence_logprob(logits, actions):
    logprobs = F.log_softmax(logits, dim=-1)  # <- here
    return logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1)  # <- here


def ppo_loss(new, old, advantage, clip=0.2):
    ratio = torch.exp(new - old)  # <- here
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


@pytest.mark.amp(dtype="bfloat16")
def test_ppo_update(amp_benchmark):
    def setup(arm):
        policy = Policy().to(arm.device)
        optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
        tokens = torch.randint(40, (64, 33)).to(arm.device)
        states, actions = tokens[:, :-1], tokens[:, 1:]
        advantage = (0.5 + torch.randn(64)).to(arm.device)
        with torch.no_grad(), arm.autocast():
            old = sequence_logprob(policy(states).float(), actions)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = ppo_loss(sequence_logprob(policy(states), actions), old, advantage)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
