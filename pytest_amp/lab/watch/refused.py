"""Find the line that led to a GradScaler's exception, where that is not the call that raised it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.gradient_edits import GradientEdits
from pytest_amp.lab.watch.source import location

__tracebackhide__ = unless_our_bug


class LedToRefusal:
    """Watches steps that a GradScaler ends with an exception.

    Attributes:
        unscaled_at: the user's line of the first backward pass before any loss was scaled.
        emptied_at: the user's line that emptied the gradients after the last backward pass.
    """

    def __init__(self) -> None:
        self.unscaled_at: str | None = None
        self.emptied_at: str | None = None
        self._edits = GradientEdits()
        self._scaled = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what happens inside; compiled code runs eagerly."""
        with (
            torch.compiler.set_stance("force_eager"),
            self._edits,
            subscribed(
                scale=self._around_scale,
                backward=self._around_backward,
                unscale=self._around_call,
                scaler_step=self._around_call,
            ),
        ):
            yield

    def _around_scale(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        self._scaled = True
        return original(*args, **kwargs)

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._scaled and self.unscaled_at is None:
            self.unscaled_at = location()
        self._edits.forget()
        return original(*args, **kwargs)

    def _around_call(self, original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = args[0] if args else kwargs["optimizer"]
        given = [param for group in optimizer.param_groups for param in group["params"]]
        self.emptied_at = self._edits.emptied(given)
        return original(scaler, *args, **kwargs)
