"""What AmpTelemetry logs, to whom and when, and that it never ends a training."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pytest_amp import AmpError
from pytest_amp.integrations.lightning import AmpTelemetry as ForLightning
from tests.integrations.train_and_log import net, rows, scaler

EVERY = ["amp/enabled", "amp/grad_underflow", "amp/loss_scale", "amp/precision"]
EVERY.append("amp/skipped_steps")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.needs("lightning", "transformers", "accelerate", "wandb", "tensorboard", "mlflow")
def test_three_loggers_have_it_in_their_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integrations.train_and_log", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    # Lightning counts a step that is under way, and the Trainer counts those that ended.
    steps = {"lightning": [3, 7, 10], "transformers": [4, 8, 10]}
    for framework, expected in steps.items():
        for logger, records in found[framework].items():
            ours = {name: values for name, values in records.items() if name.startswith("amp/")}
            assert sorted(ours) == EVERY, logger
            for values in ours.values():
                assert [step for step, _ in values] == expected, logger
            last = {name: values[-1][1] for name, values in ours.items()}
            assert 0 <= last.pop("amp/grad_underflow") < 0.5
            assert last == {
                "amp/enabled": 1, "amp/precision": 16,
                "amp/loss_scale": 2.0**11, "amp/skipped_steps": 1,
            }  # fmt: skip
            loss = records["train/loss" if "train/loss" in records else "loss"]
            assert [step for step, _ in loss] == expected[:2], "the steps of the trainer's own loss"


class Recording:
    """The figures that a logger was given, by their step."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, float]] = {}

    def take(self, figures, step):
        self.found.setdefault(step, {}).update(figures)

    @property
    def steps(self) -> list[int]:
        return sorted(step for step, figures in self.found.items() if "amp/enabled" in figures)


@pytest.fixture(autouse=True)
def _no_run_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)


class Run:
    """A run of wandb: a row that is not committed becomes part of the next."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.pending: dict[str, float] = {}

    def log(self, row, commit=True):
        self.pending |= row
        if commit:
            self.rows.append(self.pending)
            self.pending = {}


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch):
    """A run of wandb and one of MLflow that somebody began, as these packages show them."""
    run, of_mlflow, opened = Run(), Recording(), object()
    wandb, mlflow = types.ModuleType("wandb"), types.ModuleType("mlflow")
    wandb.run = run
    mlflow.active_run = lambda: opened
    mlflow.log_metrics = of_mlflow.take
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return run, of_mlflow


# Lightning


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture):
    found = pytest.importorskip(request.param)
    caplog.set_level(logging.ERROR, request.param)
    return found


def fit(
    package, telemetry, logger=None, steps=10, ckpt_path=None, model=None, more_callbacks=(), **more
):
    from importlib import import_module

    precision = import_module(f"{package.__name__}.plugins.precision")

    class Classifier(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = package.Trainer(
        accelerator="cpu", max_steps=steps, logger=logger or False,
        callbacks=[telemetry, *more_callbacks],
        plugins=[precision.MixedPrecision("16-mixed", "cpu", scaler())],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **{"log_every_n_steps": 5, **more},
    )  # fmt: skip
    module = Classifier() if model is None else model(Classifier)
    trainer.fit(module, torch.utils.data.DataLoader(rows(), 8), ckpt_path=ckpt_path)
    return trainer


def logger_of(package):
    from importlib import import_module

    class Logger(import_module(f"{package.__name__}.loggers").Logger, Recording):
        name, version = "recording", 0

        def __init__(self):
            super().__init__()
            Recording.__init__(self)

        def log_hyperparams(self, *_, **__):
            pass

        def log_metrics(self, metrics, step=None):
            self.take(metrics, step)

    return Logger


def telemetry_for_lightning(**more):
    from pytest_amp.integrations.lightning import AmpTelemetry

    return AmpTelemetry(**more)


@pytest.mark.parametrize(
    ("every_n_steps", "expected"),
    [(None, [4, 8, 9]), (0, [8, 10]), (3, [2, 5, 8, 10])],
)
def test_lightning_logs_in_its_rhythm_and_at_the_end_of_epochs(
    package, every_n_steps, expected
) -> None:
    logger = logger_of(package)()
    telemetry = telemetry_for_lightning(every_n_steps=every_n_steps)
    fit(package, telemetry, logger)
    assert logger.steps == expected
    assert sorted(logger.found[expected[-1]]) == EVERY


def test_lightning_logs_to_each_of_its_loggers_and_to_runs_that_are_active(package, active) -> None:
    logger, (run, of_mlflow) = logger_of(package)(), active
    fit(package, telemetry_for_lightning(every_n_steps=0), logger)
    assert logger.steps == of_mlflow.steps == [8, 10]
    # The user numbers the rows, so the figures wait for the user's next one.
    assert run.rows == []
    assert sorted(run.pending) == EVERY


def test_a_run_of_wandb_that_lightnings_logger_has_is_logged_to_once(package, active) -> None:
    class WandbLogger(logger_of(package)):
        pass

    class Mine(WandbLogger):
        pass

    logger, (run, of_mlflow) = Mine(), active
    fit(package, telemetry_for_lightning(every_n_steps=0), logger)
    assert logger.steps == of_mlflow.steps == [8, 10]
    assert (run.rows, run.pending) == ([], {})


def test_a_logger_that_raises_is_told_once_and_the_others_go_on(package, caplog) -> None:
    class Broken(logger_of(package)):
        def log_metrics(self, metrics, step=None):
            if "amp/enabled" in metrics:
                raise ConnectionError("no route")

    logger = logger_of(package)()
    with caplog.at_level(logging.WARNING, "pytest_amp"):
        trainer = fit(package, telemetry_for_lightning(every_n_steps=2), [Broken(), logger])
    assert trainer.global_step == 10
    assert logger.steps == [1, 3, 5, 7, 9]
    told = [record.message for record in caplog.records if record.name.startswith("pytest_amp")]
    assert told == ["AmpTelemetry could not log to Broken: ConnectionError: no route"]


def test_telemetry_that_breaks_is_told_once_and_the_training_goes_on(
    package, caplog, monkeypatch
) -> None:
    from pytest_amp.lab.telemetry import Meter

    monkeypatch.setattr(Meter, "stepped", lambda *_: 1 / 0)
    logger = logger_of(package)()
    with caplog.at_level(logging.WARNING, "pytest_amp"):
        trainer = fit(package, telemetry_for_lightning(), logger)
    assert (trainer.global_step, logger.steps) == (10, [])
    told = [record.message for record in caplog.records if record.name.startswith("pytest_amp")]
    because = "ZeroDivisionError in on_train_batch_end: division by zero"
    assert told == [f"AmpTelemetry ends here, and the training goes on: {because}"]


def test_only_rank_0_looks_and_logs(package, monkeypatch) -> None:
    monkeypatch.setattr(package.Trainer, "is_global_zero", False)
    logger, telemetry = logger_of(package)(), telemetry_for_lightning(every_n_steps=1)
    monkeypatch.setattr(telemetry, "_begin", lambda *_: pytest.fail("rank 1 began to watch"))
    fit(package, telemetry, logger)
    assert logger.steps == []


def test_without_a_logger_no_step_is_looked_at(package, monkeypatch) -> None:
    from pytest_amp.lab.telemetry import Meter

    monkeypatch.setattr(Meter, "look", lambda _: pytest.fail("a step was looked at"))
    telemetry = telemetry_for_lightning(every_n_steps=1)
    fit(package, telemetry)
    assert not telemetry.broken


def test_lightnings_accumulation_is_one_step(package) -> None:
    logger = logger_of(package)()
    telemetry = telemetry_for_lightning(every_n_steps=1)
    fit(package, telemetry, logger, steps=2, accumulate_grad_batches=4)
    assert logger.steps == [0, 1]


def two_optimizers(base, factor=1.0):
    class Two(base):
        def __init__(self):
            super().__init__()
            self.automatic_optimization, self.other = False, net()

        def training_step(self, batch, batch_idx):
            for optimizer, part in zip(self.optimizers(), (self.net, self.other), strict=True):
                loss = F.cross_entropy(part(batch[0]), batch[1]) * factor
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters()) for part in (self.net, self.other)]

    return Two()


def test_two_optimizers_of_a_batch_can_both_be_skipped(package) -> None:
    def manual(base):
        return two_optimizers(base, float("inf"))

    logger = logger_of(package)()
    fit(package, telemetry_for_lightning(every_n_steps=1), logger, steps=4, model=manual)
    assert logger.found[1]["amp/skipped_steps"] == 4
    assert logger.found[1]["amp/loss_scale"] == 2.0**8


def test_a_step_that_raises_leaves_no_hook(package) -> None:
    made = []

    def failing(base):
        class Failing(base):
            def training_step(self, batch, batch_idx):
                raise ValueError("a bad batch")

        made.append(Failing())
        return made[0]

    logger = logger_of(package)()
    with pytest.raises(ValueError, match="a bad batch"):
        fit(package, telemetry_for_lightning(every_n_steps=1), logger, model=failing)
    assert not any(module._forward_hooks for module in made[0].modules())
    assert not any(each._post_accumulate_grad_hooks for each in made[0].parameters())


def test_a_checkpoint_of_lightning_keeps_the_number_of_skipped_steps(package, tmp_path) -> None:
    def overflowing(base):
        class Overflowing(base):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx) * float("inf")

        return Overflowing()

    trainer = fit(package, telemetry_for_lightning(), steps=8, model=overflowing)
    trainer.save_checkpoint(tmp_path / "saved.ckpt", weights_only=False)
    logger = logger_of(package)()
    fit(package, telemetry_for_lightning(), logger, ckpt_path=tmp_path / "saved.ckpt")
    assert logger.found[9]["amp/skipped_steps"] == 8
    assert logger.found[9]["amp/loss_scale"] == 2.0**4


class Sub(ForLightning):
    """A user's subclass."""


@pytest.mark.parametrize("cls", [ForLightning, Sub])
def test_a_callback_is_pickled_for_the_processes_that_train(package, cls) -> None:
    sent = pickle.loads(pickle.dumps(cls(every_n_steps=7)))
    assert isinstance(sent, cls)
    assert (type(sent).__name__, sent.every_n_steps) == (cls.__name__, 7)
    assert isinstance(sent, package.Callback)


def test_two_of_them_in_one_trainer_keep_their_own_state(package) -> None:
    pair = [telemetry_for_lightning(every_n_steps=steps) for steps in (2, 0)]
    fit(package, pair[0], logger_of(package)(), more_callbacks=pair[1:])
    assert len({each.state_key for each in pair}) == 2


def test_the_next_training_is_another(package, monkeypatch) -> None:
    from pytest_amp.lab.telemetry import Meter

    telemetry, logger = telemetry_for_lightning(every_n_steps=5), logger_of(package)()
    with monkeypatch.context() as patched:
        patched.setattr(Meter, "stepped", lambda *_: 1 / 0)
        trainer = fit(package, telemetry, logger)
    assert telemetry.broken
    assert not any(each._post_accumulate_grad_hooks for each in trainer.model.parameters())
    fit(package, telemetry, logger)
    assert logger.steps == [4, 8, 9]


def test_a_gan_is_logged_and_looked_at_as_often_as_lightning_logs(package, monkeypatch) -> None:
    from pytest_amp.lab.telemetry import Meter

    looks, look = [], Meter.look
    monkeypatch.setattr(Meter, "look", lambda meter: (looks.append(meter.steps), look(meter)))
    logger = logger_of(package)()
    fit(package, telemetry_for_lightning(), logger, steps=20, model=two_optimizers)
    assert looks == [0, 4, 8, 9]  # an epoch has eight batches
    assert logger.steps == [4, 8, 9]


# Hugging Face


@pytest.fixture
def transformers():
    pytest.importorskip("accelerate")
    yield pytest.importorskip("transformers")
    sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


def telemetry_for_the_trainer(**more):
    from pytest_amp.integrations.transformers import AmpTelemetry

    return AmpTelemetry(**more)


class Net(torch.nn.Module):
    def __init__(self, overflows=False):
        super().__init__()
        self.net, self.factor = net(), float("inf") if overflows else 1

    def forward(self, inputs, labels):
        return {"loss": F.cross_entropy(self.net(inputs), labels) * self.factor}


def trainer_of(transformers, telemetry, folder, *others, half=True, model=None, **more):
    class Trainer(transformers.Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            if half:  # what Accelerate makes of fp16 on a GPU
                self.accelerator.state._mixed_precision = "fp16"
                self.accelerator.native_amp, self.accelerator.scaler = True, scaler()

    given = {"max_steps": 10, "logging_steps": 5, "save_strategy": "no", **more}
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=8, use_cpu=True, report_to=[],
        disable_tqdm=True, **given,
    )  # fmt: skip
    examples = [{"inputs": inputs, "labels": label} for inputs, label in rows()]
    return Trainer(
        model or Net(), arguments, train_dataset=examples, callbacks=[*others, telemetry]
    )


class Writer(Recording):
    def add_scalar(self, name, value, step):
        self.take({name: value}, step)


def tensorboard(transformers, writer):
    class TensorBoardCallback(transformers.TrainerCallback):
        tb_writer = writer

    return TensorBoardCallback()


@pytest.mark.parametrize(
    ("every_n_steps", "more", "expected"),
    [
        (None, {}, [5, 8, 10]),
        (None, {"logging_strategy": "epoch"}, [8, 10]),
        (0, {}, [8, 10]),
        (3, {}, [3, 6, 8, 9, 10]),
        (3, {"gradient_accumulation_steps": 4, "max_steps": 4}, [2, 3, 4]),
    ],
)
def test_the_trainer_logs_in_its_rhythm_and_at_the_end_of_epochs(
    transformers, active, tmp_path, every_n_steps, more, expected
) -> None:
    writer = Writer()
    telemetry = telemetry_for_the_trainer(every_n_steps=every_n_steps)
    trainer_of(transformers, telemetry, tmp_path, tensorboard(transformers, writer), **more).train()
    assert not telemetry.broken
    run, of_mlflow = active
    assert writer.steps == of_mlflow.steps == expected
    assert sorted(writer.found[expected[-1]]) == sorted(run.pending) == EVERY
    assert run.rows == []


def test_where_the_trainer_reports_to_wandb_each_record_is_a_row(
    transformers, active, tmp_path
) -> None:
    class WandbCallback(transformers.TrainerCallback):
        pass

    telemetry = telemetry_for_the_trainer()
    trainer_of(transformers, telemetry, tmp_path, WandbCallback()).train()
    assert [row["train/global_step"] for row in active[0].rows] == [5, 8, 10]
    assert sorted(active[0].rows[0].keys() - {"train/global_step"}) == EVERY


def test_the_first_step_is_logged_where_the_trainer_logs_it(transformers, active, tmp_path) -> None:
    telemetry = telemetry_for_the_trainer()
    trainer_of(transformers, telemetry, tmp_path, logging_first_step=True).train()
    assert active[1].steps == [1, 5, 8, 10]
    assert sorted(active[1].found[1]) == EVERY


def test_a_step_that_the_trainer_s_scaler_skips_is_counted(transformers, active, tmp_path) -> None:
    telemetry = telemetry_for_the_trainer()
    trainer_of(transformers, telemetry, tmp_path, model=Net(overflows=True)).train()
    assert active[1].found[5]["amp/skipped_steps"] == 5
    assert active[1].found[10]["amp/loss_scale"] == 4.0
    trainer_of(transformers, telemetry, tmp_path).train()
    assert telemetry.skipped_steps == 0, "another training"


def test_the_callback_keeps_nothing_of_a_training(transformers, active, tmp_path) -> None:
    telemetry = telemetry_for_the_trainer()
    trainer_of(transformers, telemetry, tmp_path).train()
    assert len(pickle.dumps(telemetry)) < 1000


def test_a_writer_that_raises_is_told_once_and_the_others_go_on(
    transformers, active, tmp_path, caplog
) -> None:
    class Full(Writer):
        def add_scalar(self, *_):
            raise OSError("no space left on device")

    telemetry = telemetry_for_the_trainer(every_n_steps=2)
    trainer = trainer_of(transformers, telemetry, tmp_path, tensorboard(transformers, Full()))
    with caplog.at_level(logging.WARNING, "pytest_amp"):
        trainer.train()
    assert trainer.state.global_step == 10
    assert active[1].steps == [2, 4, 6, 8, 10]
    told = [record.message for record in caplog.records if record.name.startswith("pytest_amp")]
    assert told == ["AmpTelemetry could not log to tensorboard: OSError: no space left on device"]


def test_only_the_trainers_rank_0_looks_and_logs(transformers, active, tmp_path) -> None:
    telemetry = telemetry_for_the_trainer(every_n_steps=1)
    trainer = trainer_of(transformers, telemetry, tmp_path)
    trainer.is_world_process_zero = lambda: False
    trainer.train()
    assert (active[0].pending, active[1].steps) == ({}, [])
    assert telemetry._meter is None


def without_super(transformers):
    from pytest_amp.integrations.transformers import AmpTelemetry

    class Mine(AmpTelemetry):
        def __init__(self, every_n_steps=None):
            self.tag = "and no super().__init__()"

    return Mine()


def test_a_checkpoint_of_the_trainer_keeps_the_number_of_skipped_steps(
    transformers, active, tmp_path
) -> None:
    saves = {"save_strategy": "steps", "save_steps": 3}
    first = without_super(transformers)
    model = Net(overflows=True)
    trainer_of(transformers, first, tmp_path, model=model, **saves, max_steps=3).train()
    second = without_super(transformers)
    resumed = trainer_of(
        transformers, second, tmp_path, restore_callback_states_from_checkpoint=True
    )
    resumed.train(resume_from_checkpoint=True)
    assert first.skipped_steps == 3
    assert active[1].found[10]["amp/skipped_steps"] == 3


# Both


@pytest.mark.parametrize("given", [-1, 2.5, True, "epoch"])
def test_an_invalid_interval_is_refused(given) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(AmpError, match="give a number of steps, 0 to log at the ends of epochs"):
        telemetry_for_the_trainer(every_n_steps=given)
