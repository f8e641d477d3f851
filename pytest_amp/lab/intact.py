"""Leave the process as it was, even where a signal's exception arrives while that is being done."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_amp.lab.machine.global_state import GlobalState, quietly
from pytest_amp.lab.watch.events import unsubscribe_all


@contextmanager
def intact(state: GlobalState) -> Iterator[None]:
    """Restore, at the end, all that a measurement changes in this process.

    Each part of it cleans up after itself, too. But a timeout's signal and Ctrl-C raise anywhere,
    also in a `finally` and right before its `try`. So everything is looked at here once more, and
    then again, since the exception may arrive here as well.
    """
    with warnings.catch_warnings():
        before = state.capture()
        frozen, profiled = gc.get_freeze_count(), torch._C._autograd._profiler_enabled()
        depth = len(_modes())
        ours, others = sys.gettrace(), threading.gettrace()

        def restore() -> None:
            unsubscribe_all()
            while len(_modes()) > depth:
                _modes()[-1].__exit__(None, None, None)
            if torch._C._autograd._profiler_enabled() and not profiled:
                with quietly():
                    torch._C._autograd._disable_profiler()
                    torch.autograd.profiler._set_is_profiler_enabled(False)
            state.apply(before)
            if not frozen:
                gc.unfreeze()
            if sys.gettrace() is not ours:
                sys.settrace(ours)
            if threading.gettrace() is not others:
                threading.settrace(others)

        try:
            yield
        finally:
            try:
                restore()
            finally:
                restore()


def _modes() -> list[Any]:
    modes: list[Any] = _get_current_dispatch_mode_stack()
    return modes
