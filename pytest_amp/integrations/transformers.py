"""Measure the ``train`` of a Hugging Face Trainer step by step: ``arm.loop(train(trainer))``."""

from __future__ import annotations

import math
from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.loop import Run, Tick

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
