"""Measure the ``run`` of an Ignite engine step by step: ``arm.loop(run(engine, loader))``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.loop import LoopEnded, Run, Tick

__tracebackhide__ = unless_our_bug

WITHOUT_LIMIT = 10**9


def run(
    engine: Any, data: Any, *, loss: Callable[[Any], Any] = lambda output: output, **named: Any
) -> Run:
    """Return what `arm.loop` takes to train with an Ignite engine.

    Args:
        engine: an ``ignite.engine.Engine``, made for this arm, whose update runs one step of the
            optimizer.
        data: what its ``run`` takes. It is iterated anew in each epoch, unless it is an iterator.
        loss: makes the loss of what the update returned; by default that is the loss.
        named: further arguments of ``engine.run``; ``max_epochs`` is without limit by default.
    """

    def train(tick: Tick) -> None:
        from ignite.engine import Events

        def tell(engine: Any) -> None:
            try:
                tick(loss(engine.state.output))
            except LoopEnded:  # which the engine would log as a failure
                engine.terminate()

        limits = {} if "max_iters" in named else {"max_epochs": WITHOUT_LIMIT}
        if iter(data) is data:  # it is used up, and each further epoch would be empty
            limits = {"max_epochs": 1}
        handler = engine.add_event_handler(Events.ITERATION_COMPLETED, tell)
        try:
            engine.run(data, **{**limits, **named})
        finally:
            handler.remove()

    return train
