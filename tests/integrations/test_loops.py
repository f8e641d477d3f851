"""The glue around each framework's loop: what is one step, what is its loss, and how it ends."""

from __future__ import annotations

import logging
import signal
import sys

import pytest
import torch
import torch.nn.functional as F

from pytest_amp import AmpError
from pytest_amp.lab.loop import Loop
from tests.integrations.test_frameworks import loader, net

pytest.importorskip("greenlet")


@pytest.fixture(autouse=True)
def _nothing_left_of_accelerate():
    """These loops run outside of an experiment, which would do it."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


def trained(run, steps=3):
    """The losses of so many steps, after which the loop is closed."""
    step = Loop(run)
    try:
        return [step() for _ in range(steps)]
    finally:
        step.close()


@pytest.fixture
def lightning(caplog: pytest.LogCaptureFixture):
    """A Lightning trainer and module, and the `run` that they make."""
    pl = pytest.importorskip("lightning.pytorch")
    from pytest_amp.integrations.lightning import fit

    caplog.set_level(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self, returned):
            super().__init__()
            self.net, self.returned, self.steps, self.failed = net(), returned, 0, []

        def training_step(self, batch, batch_idx):
            return self.returned(self, F.cross_entropy(self.net(batch[0]), batch[1]), batch_idx)

        def optimizer_step(self, *arguments, **named):
            super().optimizer_step(*arguments, **named)
            self.steps += 1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Failures(pl.Callback):
        def on_exception(self, trainer, module, exception):
            module.failed.append(type(exception).__name__)

    def make(returned=lambda _, loss, __: loss, loss=None, **more):
        module = Module(returned)
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Failures()], **more,
        )  # fmt: skip
        return module, fit(trainer, module, loader(), loss=loss)

    return make


def test_lightning_trains_beyond_its_limits_and_ends_without_a_failure(lightning) -> None:
    module, run = lightning()
    losses = trained(run, 20)  # an epoch has eight batches
    assert len({float(loss) for loss in losses}) == 20
    assert (module.steps, module.failed) == (20, [])


def test_a_step_of_lightning_is_one_of_its_optimizer(lightning) -> None:
    whole = []

    def returned(module, loss, index):
        whole.append(loss.item())
        return loss

    module, run = lightning(returned, accumulate_grad_batches=2)
    losses = trained(run, 3)
    assert module.steps == 3
    assert len(whole) == 6
    for index, loss in enumerate(losses):
        assert float(loss) == pytest.approx(sum(whole[2 * index : 2 * index + 2]) / 2)


def test_lightnings_loss_is_found_or_asked_for(lightning) -> None:
    _, run = lightning(lambda _, loss, __: {"loss": loss, "other": 1})
    assert all(float(loss) > 0 for loss in trained(run))
    _, run = lightning(loss=lambda _: 2.0)
    assert trained(run) == [2.0, 2.0, 2.0]
    _, run = lightning(lambda *_: None)
    with (
        pytest.warns(UserWarning, match="returned `None`"),
        pytest.raises(AmpError, match="training_step returned no loss: return it"),
    ):
        trained(run)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_lightning_s_step_raises_is_raised(lightning, error: type[BaseException]) -> None:
    def returned(module, loss, index):
        if index == 1:
            raise error("in the step")
        return loss

    module, run = lightning(returned)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(error):
        trained(run)
    assert module.failed == [error.__name__]
    assert signal.getsignal(signal.SIGINT) is before  # Lightning would ignore further Ctrl-C


@pytest.fixture
def hf(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from pytest_amp.integrations.transformers import train

    class Model(torch.nn.Module):
        def __init__(self, change):
            super().__init__()
            self.net, self.change, self.calls = net(), change, 0

        def forward(self, inputs, labels):
            self.calls += 1
            return {"loss": self.change(F.cross_entropy(self.net(inputs), labels))}

    rows = [{"inputs": torch.randn(16), "labels": torch.tensor(index % 4)} for index in range(32)]

    def make(change=lambda loss: loss, **more):
        arguments = transformers.TrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True,
            report_to=[], save_strategy="no", logging_strategy="no", **{"max_steps": 2, **more},
        )  # fmt: skip
        trainer = transformers.Trainer(Model(change), arguments, train_dataset=rows)
        return trainer, train(trainer)

    return make


def test_the_hf_trainer_trains_beyond_its_limits_and_is_as_before(hf) -> None:
    trainer, run = hf()
    callbacks = len(trainer.callback_handler.callbacks)
    losses = trained(run, 9)  # an epoch has four batches
    assert len({float(loss) for loss in losses}) == 9
    assert trainer.args.max_steps == 2
    assert len(trainer.callback_handler.callbacks) == callbacks
    assert "training_step" not in vars(trainer)


def test_a_step_of_the_hf_trainer_is_one_of_its_optimizer(hf) -> None:
    trainer, run = hf(gradient_accumulation_steps=2)
    losses = trained(run, 3)
    assert trainer.model.calls == 6
    assert all(0.5 < float(loss) < 3 for loss in losses)  # a mean of two, and not their sum


def test_the_hf_trainer_hides_no_loss_that_is_not_finite(hf) -> None:
    _, run = hf(lambda loss: loss * float("nan"))
    assert all(not torch.isfinite(loss) for loss in trained(run))


def test_ignite_begins_anew_and_ends_without_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    engines = pytest.importorskip("ignite.engine")
    from pytest_amp.integrations.ignite import run

    engine = engines.Engine(lambda _, batch: {"total": batch})
    caplog.set_level(logging.ERROR)
    assert trained(run(engine, [1, 2], loss=lambda output: output["total"]), 5) == [1, 2, 1, 2, 1]
    assert caplog.records == []  # nothing failed
    short = engines.Engine(lambda _, batch: batch)
    with pytest.raises(AmpError, match="ended after step 2"):
        trained(run(short, [1, 2], max_epochs=1), 5)


def test_what_ignite_s_update_raises_is_raised() -> None:
    engines = pytest.importorskip("ignite.engine")
    from pytest_amp.integrations.ignite import run

    def update(engine, batch):
        raise ValueError("in the update")

    engine = engines.Engine(update)
    engine.logger.setLevel(logging.CRITICAL)
    with pytest.raises(ValueError, match="in the update"):
        trained(run(engine, [1, 2]))


def test_what_can_be_iterated_once_ends_ignite_s_loop() -> None:
    engines = pytest.importorskip("ignite.engine")
    from pytest_amp.integrations.ignite import run

    engine = engines.Engine(lambda _, batch: batch)
    with pytest.raises(AmpError, match="ended after step 2"):
        trained(run(engine, iter([1, 2])), 5)


def test_ignite_s_own_limit_of_iterations_may_be_given() -> None:
    engines = pytest.importorskip("ignite.engine")
    from pytest_amp.integrations.ignite import run

    engine = engines.Engine(lambda _, batch: batch)
    assert trained(run(engine, [1, 2], max_iters=10**9), 5) == [1, 2, 1, 2, 1]


@pytest.mark.parametrize(("more", "rates"), [
    ({"num_train_epochs": 2, "max_steps": -1}, [1.0, 7 / 8, 6 / 8]),  # of four batches each
    ({"max_steps": 4}, [1.0, 3 / 4, 2 / 4]),
])  # fmt: skip
def test_the_hf_trainer_s_schedule_is_of_its_own_length(hf, more, rates) -> None:
    trainer, run = hf(learning_rate=1.0, lr_scheduler_type="linear", **more)
    seen = []

    def ticking(tick):
        def told(loss):
            seen.append(trainer.lr_scheduler.get_last_lr()[0])
            tick(loss)

        run(told)

    trained(ticking, 3)
    assert seen[:3] == pytest.approx([each - (1 - rates[1]) for each in rates])


def test_lightning_s_limits_are_there_while_it_is_set_up(lightning) -> None:
    seen = []
    module, run = lightning()

    def configure():
        seen.append((module.trainer.max_epochs, int(module.trainer.estimated_stepping_batches)))
        return torch.optim.SGD(module.parameters(), lr=0.1)

    module.configure_optimizers = configure
    assert len(trained(run, 20)) == 20
    assert seen == [(1, 8)]
