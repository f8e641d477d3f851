"""A loss that is summed step by step in bfloat16 is rounded at every step, to whole numbers from
128 on; the sum has to be kept in float32."""

import pytest
import torch

EXPECT = ("AMP304", "loss gate")


class SequenceTrainer:
    def __init__(self, arm, device):
        self.arm = arm
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)
        ).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.inputs = torch.randn(400, 16, 8).to(device)
        self.targets = (0.5 * torch.randn(400, 16, 4)).to(device)

    def sequence_loss(self, outputs):
        total = torch.zeros((), dtype=outputs.dtype, device=outputs.device)
        for output, target in zip(outputs, self.targets.to(outputs.dtype), strict=True):
            total = total + (output - target).abs().mean()  # <- here
        return total

    def step(self):
        self.optimizer.zero_grad()
        with self.arm.autocast():
            loss = self.sequence_loss(self.model(self.inputs))
        self.arm.scaler.scale(loss).backward()
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        return loss


@pytest.mark.amp(dtype="bfloat16")
def test_sequence(amp_benchmark, amp_device):
    amp_benchmark(lambda arm: SequenceTrainer(arm, amp_device).step)
