"""The forward algorithm of a CRF keeps its log sums in a bfloat16 buffer, where they step by 1
above 128; run it in float32.
"""

import pytest
import torch
from torch import nn

EXPECT = ("AMP304", "loss gate")


class LinearChainCRF(nn.Module):
    def __init__(self, tags):
        super().__init__()
        self.transitions = nn.Parameter(0.1 * torch.randn(tags, tags))

    def log_partition(self, emissions):
        batch, length, tags = emissions.shape
        alphas = emissions.new_zeros(length, batch, tags)  # <- here
        alphas[0] = emissions[:, 0]
        for t in range(1, length):
            paths = alphas[t - 1].unsqueeze(2) + self.transitions
            alphas[t] = torch.logsumexp(paths, dim=1) + emissions[:, t]  # <- here
        return torch.logsumexp(alphas[-1], dim=-1)

    def score(self, emissions, tags):
        emitted = emissions.float().gather(2, tags.unsqueeze(2)).sum((1, 2))
        return emitted + self.transitions[tags[:, :-1], tags[:, 1:]].sum(1)

    def forward(self, emissions, tags):
        return (self.log_partition(emissions) - self.score(emissions, tags)).mean()


@pytest.mark.amp(dtype="bfloat16")
def test_phoneme_crf(amp_benchmark):
    def setup(arm):
        encoder = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 5)).to(arm.device)
        crf = LinearChainCRF(5).to(arm.device)
        optimizer = torch.optim.Adam([*encoder.parameters(), *crf.parameters()], lr=5e-3)
        frames = torch.randn(4, 120, 12).to(arm.device)
        tags = frames[..., :5].argmax(-1)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = crf(encoder(frames), tags)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
