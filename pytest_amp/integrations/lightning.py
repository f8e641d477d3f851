"""For Lightning: measure a training step by step with ``fit``; log with ``AmpTelemetry``."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_amp import extras
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.integrations.telemetry import Sink, Telemetry, active_runs, harmless
from pytest_amp.lab.loop import LoopEnded, Run, Tick
from pytest_amp.lab.telemetry import Meter

__tracebackhide__ = unless_our_bug

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def fit(
    trainer: Any,
    module: Any,
    *arguments: Any,
    loss: Callable[[Any], Any] | None = None,
    **named: Any,
) -> Run:
    """Return what `arm.loop` takes to train with a Lightning trainer.

    The trainer's limits on epochs and steps are taken off once training begins, since the
    experiment decides how many steps it needs. With ``accumulate_grad_batches``, a step is one of
    the optimizer, and its loss the sum of its micro-batches' parts.

    Args:
        trainer: a ``Trainer`` of `lightning.pytorch` or `pytorch_lightning`, made for this arm.
        module: the ``LightningModule``.
        arguments: what else ``trainer.fit`` takes, such as a data loader.
        loss: makes the loss of what ``training_step`` returned, if that is neither a tensor nor a
            mapping with a ``"loss"``.
        named: further arguments of ``trainer.fit``.
    """
    package = type(trainer).__module__.partition(".trainer")[0]

    def train(tick: Tick) -> None:
        callback = _callback(package, tick, loss)
        trainer.callbacks.append(callback)  # the last, behind those that act on a batch's end
        if trainer.fit_loop.max_epochs is None and trainer.fit_loop.epoch_loop.max_steps == -1:
            trainer.fit_loop.max_epochs = -1  # or Lightning warns that nobody gave a limit
        try:
            with _sigint_as_before():
                trainer.fit(module, *arguments, **named)
        finally:
            trainer.callbacks.remove(callback)

    return train


def _callback(package: str, tick: Tick, loss: Callable[[Any], Any] | None) -> Any:
    """Return a callback that ticks after each step of the optimizer."""
    base: Any = importlib.import_module(f"{package}.callbacks").Callback
    # Lightning ends by it without telling callbacks and loggers of a failure.
    exceptions = importlib.import_module(f"{package}.utilities.exceptions")
    ends_quietly = getattr(exceptions, "_TunerExitException", None)

    class Ticking(base):  # type: ignore[misc]
        total: Any = None

        def on_train_start(self, trainer: Any, _: Any) -> None:
            # Not before: schedules and callbacks ask for the limits while they are set up.
            trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any
        ) -> None:
            part = loss(outputs) if loss is not None else _loss_of(outputs)
            self.total = part if self.total is None else self.total + part
            if pl_module.automatic_optimization and trainer.fit_loop._should_accumulate():
                return
            whole, self.total = self.total, None
            try:
                tick(whole)
            except LoopEnded as ended:
                if ends_quietly is None:
                    raise
                raise ends_quietly from ended

    return Ticking()


def _loss_of(outputs: Any) -> Any:
    found = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if found is None:
        raise AmpError(
            "training_step returned no loss: return it, under manual optimization too, or give "
            "fit() a function that finds it, as in fit(trainer, module, loss=...)"
        )
    return found


class AmpTelemetry(Telemetry):
    """A callback that logs what mixed precision does in a real training.

    It logs ``amp/enabled``, ``amp/precision`` (bits), ``amp/loss_scale``, ``amp/skipped_steps``
    (in all) and ``amp/grad_underflow`` (a share) to each of the trainer's loggers, and to a run of
    wandb or mlflow that was begun without one. Only the process of rank 0 does anything. A
    checkpoint keeps the number of skipped steps.

    Args:
        every_n_steps: log every so many steps of the optimizer; 0 for the ends of epochs alone.
            By default, whenever the trainer logs. The end of an epoch is logged in any case.

    Raises:
        AmpError: `every_n_steps` is no such number, or Lightning is not installed.
    """

    @classmethod
    def _bases(cls) -> tuple[type, ...]:
        """Return the Callback of each of Lightning's packages that is in use."""
        used = [name for name in _PACKAGES if sys.modules.get(name) is not None]
        if not used:
            if missing := extras.missing("frameworks", "AmpTelemetry needs", "lightning"):
                raise AmpError(missing)
            used = [_PACKAGES[0]]
        return tuple(importlib.import_module(f"{name}.callbacks").Callback for name in used)

    @harmless
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch, from the scale that a resumed training has."""
        if trainer.is_global_zero:
            autocast = _AUTOCAST.get(str(trainer.precision))
            meter = Meter(pl_module, autocast, skipped=self._resumed_with)
            self._begin(meter, _scaler(trainer))

    @harmless
    def on_train_batch_start(self, trainer: Any, _: Any, __: Any, batch_idx: int) -> None:
        """Look at a step that will be logged, and at the first one of an epoch."""
        due = batch_idx == 0 or self._is_due(trainer)
        if self._meter is not None and due and self._sinks(trainer):
            self._meter.look()

    @harmless
    def on_before_optimizer_step(self, trainer: Any, _: Any, optimizer: Any) -> None:
        """Note whether the scaler will skip the step; Lightning has unscaled the gradients."""
        if self._meter is not None:
            self._meter.overflowed(_overflow(_scaler(trainer), optimizer))

    @harmless
    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Note the scale that a step leaves, and log it when it is time to."""
        if self._meter is None or trainer.fit_loop._should_accumulate():
            return
        self._meter.stepped(_scaler(trainer))
        if self._is_due(trainer):
            self._tell(self._sinks(trainer), _axis(trainer))

    @harmless
    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """Log what the epoch ended with."""
        self._tell(self._sinks(trainer), _axis(trainer))

    @harmless
    def on_train_end(self, *_: Any) -> None:
        """Take the hooks away."""
        self._end()

    @harmless
    def on_exception(self, *_: Any) -> None:
        """Take the hooks away."""
        self._end()

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return f"AmpTelemetry(every_n_steps={self.every_n_steps})"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {} if self.broken else {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._resumed_with = int(state_dict.get("skipped_steps", 0))

    def _is_due(self, trainer: Any) -> bool:
        """Return whether to log behind the batch that is under way, as Lightning decides it."""
        every = self.every_n_steps
        every = trainer.log_every_n_steps if every is None else every
        return every > 0 and (_axis(trainer) + 1) % every == 0

    def _sinks(self, trainer: Any) -> list[Sink]:
        own = [Sink(type(each).__name__, each, _logging_to(each)) for each in trainer.loggers]
        kinds = " ".join(each.__name__ for logger in trainer.loggers for each in type(logger).mro())
        return own + [run for run in active_runs() if run.name not in kinds.lower()]


def _logging_to(logger: Any) -> Callable[[dict[str, float], int], None]:
    def log(figures: dict[str, float], step: int) -> None:
        logger.log_metrics(figures, step)

    return log


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _overflow(scaler: Any, optimizer: Any) -> torch.Tensor | None:
    """Return how many inf and NaN unscaling found; None where the optimizer unscales itself."""
    if scaler is None or not scaler.is_enabled():
        return None
    state = scaler._per_optimizer_states.get(id(optimizer), {})
    found = list(state.get("found_inf_per_device", {}).values())
    return torch.stack([each.to(found[0].device) for each in found]) if found else None


def _axis(trainer: Any) -> int:
    """Return the step at which Lightning itself would log now."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


@contextmanager
def _sigint_as_before() -> Iterator[None]:
    """Undo what Lightning makes of Ctrl-C: it ignores further ones, and exits."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from ended
        raise
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)
