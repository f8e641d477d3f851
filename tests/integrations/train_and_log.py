"""Train with Lightning and with the Trainer, each with three loggers; run as a program.

    python -m tests.integrations.train_and_log FOLDER

Each takes 10 steps in float16 with a scaler, of which the fourth overflows, in epochs of eight, and
logs every fourth step. It is a process of its own since wandb and MLflow leave much behind.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.helpers import loggers

OVERFLOWS_AT = 3


def rows() -> torch.utils.data.Dataset:
    torch.manual_seed(0)
    return torch.utils.data.TensorDataset(torch.randn(64, 16), torch.randint(4, (64,)))


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**12)


def lightning(folder: Path) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
    from lightning.pytorch.plugins.precision import MixedPrecision

    from pytest_amp.integrations.lightning import AmpTelemetry

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss * (float("inf") if self.global_step == OVERFLOWS_AT else 1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=10, log_every_n_steps=4, callbacks=[AmpTelemetry()],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler())], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
        logger=[
            TensorBoardLogger(folder), WandbLogger(save_dir=folder, offline=True),
            MLFlowLogger(tracking_uri=address(folder)),
        ],
    )  # fmt: skip
    trainer.fit(Classifier(), torch.utils.data.DataLoader(rows(), batch_size=8))


def transformers(folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from pytest_amp.integrations.transformers import AmpTelemetry

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = net(), 0

        def forward(self, inputs, labels):
            self.calls += 1
            loss = F.cross_entropy(self.net(inputs), labels)
            return {"loss": loss * (float("inf") if self.calls == OVERFLOWS_AT + 1 else 1)}

    class InHalf(Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            # What Accelerate makes of fp16 on a GPU.
            self.accelerator.state._mixed_precision = "fp16"
            self.accelerator.native_amp, self.accelerator.scaler = True, scaler()

    os.environ.update(
        MLFLOW_TRACKING_URI=address(folder),
        TENSORBOARD_LOGGING_DIR=str(folder),
        WANDB_DIR=str(folder),
    )
    arguments = TrainingArguments(
        str(folder), max_steps=10, per_device_train_batch_size=8, logging_steps=4, use_cpu=True,
        report_to=["tensorboard", "wandb", "mlflow"], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    examples = [{"inputs": inputs, "labels": label} for inputs, label in rows()]
    InHalf(Classifier(), arguments, train_dataset=examples, callbacks=[AmpTelemetry()]).train()


def address(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def read(folder: Path, axis: str) -> dict[str, loggers.Records]:
    return {
        "tensorboard": loggers.tensorboard(folder),
        "wandb": loggers.wandb(folder, axis),
        "mlflow": loggers.mlflow(address(folder)),
    }


def main() -> None:
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    import wandb

    root = Path(sys.argv[1])
    axes = {transformers: "train/global_step", lightning: "trainer/global_step"}
    for train in axes:  # in this order: wandb and MLflow read the environment once
        (root / train.__name__).mkdir()
        train(root / train.__name__)
        wandb.finish()
    wandb.teardown()  # what writes the files is a process of its own, and has ended now
    found = {train.__name__: read(root / train.__name__, axis) for train, axis in axes.items()}
    (root / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
