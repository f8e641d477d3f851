"""Near the teacher a divergence is a small difference of large logarithms, which bfloat16 rounds
away; logits have to be cast to float32 before they are divided by the temperature."""

import copy

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP304", "loss gate")


def distillation_loss(student, teacher, temperature):
    targets = F.softmax(teacher / temperature, dim=-1)  # <- here
    log_targets = F.log_softmax(teacher / temperature, dim=-1)  # <- here
    log_probs = F.log_softmax(student / temperature, dim=-1)  # <- here
    divergence = (targets * (log_targets - log_probs)).sum(-1)  # <- here
    return temperature**2 * divergence.mean()


@pytest.mark.amp(dtype="bfloat16")
def test_student(amp_benchmark, amp_device):
    def setup(arm):
        teacher = torch.nn.Sequential(
            torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 200)
        ).to(amp_device)
        teacher.requires_grad_(False)
        with torch.no_grad():
            teacher[2].weight.mul_(5)
        student = copy.deepcopy(teacher).requires_grad_(True)
        with torch.no_grad():  # pruned
            student[2].weight[torch.rand_like(student[2].weight) < 0.04] = 0
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
        x = torch.randn(64, 32).to(amp_device)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = distillation_loss(student(x), teacher(x), temperature=8.0)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
