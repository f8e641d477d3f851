"""For Hugging Face's Trainer: measure it step by step with ``train``; log with ``AmpTelemetry``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from pytest_amp import extras
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.integrations.telemetry import Sink, Telemetry, active_runs, harmless
from pytest_amp.lab.loop import Run, Tick
from pytest_amp.lab.telemetry import Meter

__tracebackhide__ = unless_our_bug

WITHOUT_LIMIT = 10**9


def train(trainer: Any, **named: Any) -> Run:
    """Return what `arm.loop` takes to train with a Hugging Face Trainer.

    The trainer trains without limit, since the experiment decides how many steps it needs; its
    schedule of the learning rate is the one of its own length. With
    ``gradient_accumulation_steps``, a step is one of the optimizer, and its loss the sum of its
    micro-batches' parts.

    Args:
        trainer: a ``transformers.Trainer`` or a subclass, made for this arm.
        named: arguments of ``trainer.train``.
    """

    def run(tick: Tick) -> None:
        from transformers import TrainerCallback

        losses: list[Any] = []

        class Ticking(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                whole = sum(losses[1:], losses[0]) if losses else None
                losses.clear()
                tick(whole)

        # Its own record leaves out what is not finite, and is read from the device.
        inner = trainer.training_step

        def training_step(*arguments: Any, **given: Any) -> Any:
            losses.append(inner(*arguments, **given))
            return losses[-1]

        # A schedule is planned over the trainer's own length, and stays at its end behind that.
        own, plan = _length(trainer), trainer.create_scheduler

        def create_scheduler(num_training_steps: int, *arguments: Any, **given: Any) -> Any:
            return plan(own or num_training_steps, *arguments, **given)

        callback, steps = Ticking(), trainer.args.max_steps
        trainer.create_scheduler = create_scheduler
        trainer.training_step = training_step
        trainer.add_callback(callback)
        trainer.args.max_steps = WITHOUT_LIMIT
        try:
            trainer.train(**named)
        finally:
            trainer.args.max_steps = steps
            trainer.remove_callback(callback)
            del trainer.training_step, trainer.create_scheduler

    return run


def _length(trainer: Any) -> int | None:
    """Return how many steps of the optimizer a trainer would take; None if nothing tells."""
    given = trainer.args
    if given.max_steps > 0:
        return int(given.max_steps)
    try:
        batches = len(trainer.get_train_dataloader())
    except TypeError:
        return None
    steps = max(batches // given.gradient_accumulation_steps, 1)
    return math.ceil(float(steps * given.num_train_epochs))


class AmpTelemetry(Telemetry):
    """A callback that logs what mixed precision does in a real training.

    It logs ``amp/enabled``, ``amp/precision`` (bits), ``amp/loss_scale``, ``amp/skipped_steps``
    (in all) and ``amp/grad_underflow`` (a share) to the runs of wandb and mlflow that are active,
    and to what the Trainer writes for TensorBoard. Only the process of rank 0 does anything. A
    checkpoint keeps the number of skipped steps.

    Args:
        every_n_steps: log every so many steps of the optimizer; 0 for the ends of epochs alone.
            By default, whenever the trainer logs. The end of an epoch is logged in any case.

    Raises:
        AmpError: `every_n_steps` is no such number, or transformers is not installed.
    """

    _handler: Any = None

    @classmethod
    def _bases(cls) -> tuple[type, ...]:
        if missing := extras.missing("frameworks", "AmpTelemetry needs", "transformers"):
            raise AmpError(missing)
        from transformers.trainer_callback import ExportableState, TrainerCallback

        return TrainerCallback, ExportableState

    @harmless
    def on_train_begin(
        self, args: Any, state: Any, *_: Any, model: Any, optimizer: Any = None, **__: Any
    ) -> None:
        """Begin to watch, from the scale that a resumed training has."""
        if state.is_world_process_zero:
            autocast = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None
            self._handler = _handler_calling()
            meter = Meter(model, autocast, args.torch_compile, self._resumed_with)
            self._begin(meter, _scaler(optimizer))

    @harmless
    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Look at the first step of an epoch."""
        self._look()

    @harmless
    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Look at a step that will be logged."""
        if self._is_due(args, state, state.global_step + 1):
            self._look()

    @harmless
    def on_step_end(self, args: Any, state: Any, *_: Any, optimizer: Any = None, **__: Any) -> None:
        """Note the scale that a step leaves, and log it when it is time to."""
        if self._meter is None:
            return
        # A fused optimizer skips by itself, of which Accelerate learns nothing.
        self._meter.overflowed(getattr(optimizer, "step_was_skipped", False) or None)
        self._meter.stepped(_scaler(optimizer))
        if self._is_due(args, state, state.global_step):
            self._tell(self._sinks(), state.global_step)

    @harmless
    def on_epoch_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Log what the epoch ended with."""
        self._tell(self._sinks(), state.global_step)

    @harmless
    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Take the hooks away."""
        self._handler = None
        self._end()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {} if self.broken else {"_resumed_with": self.skipped_steps}
        return {"args": {"every_n_steps": self.every_n_steps}, "attributes": kept}

    def _look(self) -> None:
        if self._meter is not None and self._sinks():
            self._meter.look()

    def _sinks(self) -> list[Sink]:
        others = getattr(self._handler, "callbacks", ())
        reports = any(type(each).__name__ == "WandbCallback" for each in others)
        axis = "train/global_step" if reports else None
        return [*active_runs(axis), *_tensorboard(others)]

    def _is_due(self, args: Any, state: Any, step: int) -> bool:
        every = self.every_n_steps
        if every is None:
            if args.logging_first_step and step == 1:
                return True
            every = state.logging_steps if args.logging_strategy == "steps" else 0
        return every > 0 and step % every == 0


def _scaler(optimizer: Any) -> Any:
    """Return the scaler of Accelerate's optimizer, if there is one."""
    return getattr(optimizer, "scaler", None)


def _handler_calling() -> Any:
    """Return the Trainer's CallbackHandler; its callbacks are not told of it, nor of each other."""
    from transformers.trainer_callback import CallbackHandler

    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler):
            return caller
        frame = frame.f_back
    return None


def _tensorboard(callbacks: Iterable[Any]) -> list[Sink]:
    """Return the Trainer's own writer, since TensorBoard would read one of two files alone."""
    writers = [getattr(each, "tb_writer", None) for each in callbacks]
    return [Sink("tensorboard", each, _adding_to(each)) for each in writers if each is not None]


def _adding_to(writer: Any) -> Callable[[dict[str, float], int], None]:
    def add(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return add
