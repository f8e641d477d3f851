"""Remember on which lines of the user's optimizers and GradScalers were made."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch import source
from pytest_amp.lab.watch.events import subscribed

__tracebackhide__ = unless_our_bug

_MADE_AT: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()


def noted() -> AbstractContextManager[None]:
    """Note where each optimizer and each GradScaler is made inside."""
    return subscribed(optimizer_made=_around, scaler_made=_around)


def made_at(made: object) -> str | None:
    """Return the line on which an optimizer or a scaler was made; None if nobody noted it."""
    return _MADE_AT.get(made)


def _around(original: Any, made: Any, *args: Any, **kwargs: Any) -> None:
    _MADE_AT[made] = source.made_at(made)
    original(made, *args, **kwargs)
