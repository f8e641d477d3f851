"""Accelerate prepares the model and the optimizer; the loop is one's own."""

import itertools

import pytest
import torch
import torch.nn.functional as F

accelerate = pytest.importorskip("accelerate", reason="needs pytest-amp[frameworks]")


def test_step(amp_benchmark):
    def setup(arm):
        accelerator = accelerate.Accelerator(
            mixed_precision=arm.mixed_precision, cpu=arm.device.type == "cpu"
        )
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        data = torch.utils.data.TensorDataset(torch.randn(256, 64), torch.randint(10, (256,)))
        model, optimizer, loader = accelerator.prepare(
            model, optimizer, torch.utils.data.DataLoader(data, 32)
        )
        batches = itertools.chain.from_iterable(itertools.repeat(loader))

        def step():
            inputs, targets = next(batches)
            with accelerator.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return step

    amp_benchmark(setup)
