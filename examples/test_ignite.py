"""An Ignite engine runs the loop; its update is the step."""

import pytest
import torch
import torch.nn.functional as F

engines = pytest.importorskip("ignite.engine", reason="needs pytest-amp[frameworks]")
from pytest_amp.integrations.ignite import run  # noqa: E402


def test_run(amp_benchmark):
    def setup(arm):
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10)
        ).to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        data = torch.utils.data.TensorDataset(torch.randn(256, 64), torch.randint(10, (256,)))

        def update(engine, batch):
            inputs, targets = (each.to(arm.device) for each in batch)
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return arm.loop(run(engines.Engine(update), torch.utils.data.DataLoader(data, 32)))

    amp_benchmark(setup)
