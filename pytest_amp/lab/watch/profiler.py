"""A profiler that gives way to the user's own, since torch runs only one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch.profiler import profile

from pytest_amp.lab.machine.global_state import quietly
from pytest_amp.lab.watch.events import subscribed


class Profiler:
    """Runs from `start` to `stop`, unless the user's code has a profiler or starts one.

    `gave_way` says that this happened, so that what was recorded is incomplete.
    """

    def __init__(self, **options: Any) -> None:
        with quietly():
            self.torch = profile(**options)
        self.gave_way = False
        self._running = ExitStack()

    def start(self, starting: AbstractContextManager[None] | None = None) -> None:
        """Start the profiler, within the context `starting` if there is one."""
        if torch._C._autograd._profiler_enabled():
            self.gave_way = True
            return
        with quietly(), starting or nullcontext():
            self.torch.start()
        thread = threading.get_ident()

        def give_way(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                self.stop()
                self.gave_way = True
            return original(*args, **kwargs)

        self._running.callback(self._stop)
        started = subscribed(profiler_prepared=give_way, profiler_enabled=give_way)
        self._running.enter_context(started)  # some profilers are enabled without being prepared

    def stop(self) -> None:
        """Stop the profiler if it is still running."""
        self._running.close()

    def _stop(self) -> None:
        if not torch._C._autograd._profiler_enabled():  # something that is not watched ended it
            self.gave_way = True
            return
        with quietly():
            self.torch.stop()
