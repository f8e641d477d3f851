"""Measure Lightning's ``fit`` step by step: ``arm.loop(fit(trainer, module, loader))``."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.loop import LoopEnded, Run, Tick

__tracebackhide__ = unless_our_bug


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
