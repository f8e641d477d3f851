"""The warm-up moves on where the GradScaler skipped the step; step the schedule only if the
optimizer was stepped.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP205",)


class SpeechTrainer:
    def __init__(self, arm):
        self.arm = arm
        self.model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10)).to(arm.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / 8, 8 / (step + 1)) ** 0.5
        )
        self.frames = torch.randn(64, 16).to(arm.device)
        self.labels = self.frames[:, :10].argmax(1)

    def optimizer_step(self):
        scaler = self.arm.scaler
        scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        scaler.step(self.optimizer)
        scaler.update()
        self.schedule.step()  # <- here

    def training_step(self):
        self.optimizer.zero_grad()
        with self.arm.autocast():
            loss = F.cross_entropy(self.model(self.frames), self.labels)
        self.arm.scaler.scale(loss).backward()
        self.optimizer_step()
        return loss.detach()


@pytest.mark.amp(dtype="float16")
def test_speech(amp_benchmark):
    amp_benchmark(lambda arm: SpeechTrainer(arm).training_step)
