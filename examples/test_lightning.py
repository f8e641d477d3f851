"""Lightning owns the loop: each step of its optimizer is one of the experiment's."""

import pytest
import torch
import torch.nn.functional as F

pl = pytest.importorskip("lightning.pytorch", reason="needs pytest-amp[frameworks]")
from pytest_amp.integrations.lightning import fit  # noqa: E402


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10)
        )

    def training_step(self, batch, _):
        inputs, targets = batch
        return F.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_fit(amp_benchmark, tmp_path):
    def setup(arm):
        data = torch.utils.data.TensorDataset(torch.randn(256, 64), torch.randint(10, (256,)))
        trainer = pl.Trainer(
            accelerator=arm.device.type, devices=1, precision=arm.lightning_precision,
            gradient_clip_val=1.0, default_root_dir=tmp_path, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        return arm.loop(fit(trainer, Classifier(), torch.utils.data.DataLoader(data, 32)))

    amp_benchmark(setup)
