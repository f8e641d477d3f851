"""Follow a step into other threads, where neither autocast nor a dispatch mode is in force."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.source import location

__tracebackhide__ = unless_our_bug


class Sender(NamedTuple):
    """What gave a thread its work.

    Attributes:
        autocast: whether autocast was in force there.
        location: the user's line, if it is known.
    """

    autocast: bool
    location: str | None = None


class Composite(NamedTuple):
    """A call of attention, a recurrent layer, dropout or a norm, whatever it is made of here.

    Attributes:
        kind: its name in a dtype map.
        number: its number among all of them.
    """

    kind: str
    number: int


@dataclass(eq=False)
class EnteredRegion:
    """An autocast region that is in force, or was.

    Attributes:
        location: the user's line that entered it.
        device: the device type that it is for.
        dtype: the dtype that it casts to; None if it is switched off.
        nested: whether it was entered inside of one that was switched on.
        flops: the FLOPs of the forward pass that ran in it, and in none within it.
        bytes: the bytes of floating point tensors that were made there.
    """

    location: str | None
    device: str
    dtype: str | None
    nested: bool
    flops: int = 0
    bytes: int = 0

    def is_off_for(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Return whether it is switched off for the device that these tensors are on."""
        return self.dtype is None and any(each.device.type == self.device for each in tensors)


@dataclass
class Here:
    """The place of one thread in its step.

    Attributes:
        autocast: whether autocast casts here to a reduced dtype.
        island: whether it is switched off here, inside a region that is switched on.
        regions: the two above, outside of each region that was entered here.
        entered: these regions themselves, the outermost first.
        casting: how many calls that cast a tensor are running.
        functions: the custom autograd functions that are running.
        composite: the call that is running of those that may be a single kernel.
        sender: what gave this thread its work; None in the step's own, and in autograd's.
    """

    autocast: bool = field(default_factory=torch._C._is_any_autocast_enabled)
    island: bool = False
    regions: list[tuple[bool, bool]] = field(default_factory=list)
    entered: list[EnteredRegion] = field(default_factory=list)
    casting: int = 0
    functions: list[str] = field(default_factory=list)
    composite: Composite | None = None
    sender: Sender | None = None

    @property
    def lacks_autocast(self) -> bool:
        """Whether autocast was in force where this work came from, and was not taken along."""
        sent = self.sender is not None and self.sender.autocast
        return sent and not self.autocast and not self.regions


class _EachThreads(threading.local):
    def __init__(self) -> None:
        self.here = Here()
        self.submitting = False


class Threads:
    """Enters a dispatch mode in the threads that a step starts, or gives work to.

    Those are threads that start meanwhile, what is submitted to pools of threads, and modules that
    any other thread calls. Autograd takes the modes along into its own threads.

    Args:
        mode: the mode.
    """

    def __init__(self, mode: DispatchMode) -> None:
        self._mode = mode
        self._each = _EachThreads()
        self._own = self._each.here

    @property
    def here(self) -> Here:
        """The place of the calling thread."""
        return self._each.here

    def followed(self) -> AbstractContextManager[None]:
        """Follow the calling thread's work into other threads, as long as it is entered."""
        self._own = self._each.here = Here()
        return subscribed(
            thread_started=self._around_start,
            submitted=self._around_submit,
            module_call=self._around_module,
        )

    def _around_start(self, original: Any, thread: Any) -> Any:
        # A pool's own thread outlives the step, so what is submitted to it is followed instead.
        if not self._each.submitting and not _only_pins_memory(thread):
            thread.run = self._following(thread.run)
        return original(thread)

    def _around_submit(
        self, original: Any, pool: Any, work: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        self._each.submitting = True
        try:
            return original(pool, self._following(work), *args, **kwargs)
        finally:
            self._each.submitting = False

    def _around_module(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        here = self.here
        if here is self._own or here.sender or self._mode in _get_current_dispatch_mode_stack():
            return original(*args, **kwargs)
        with self._at_work(Sender(self._own.autocast)):
            return original(*args, **kwargs)

    def _following(self, work: Callable[..., Any]) -> Callable[..., Any]:
        here = self.here
        if here is not self._own and here.sender is None:
            return work  # it is not of this step
        sender = Sender(here.autocast or here.lacks_autocast, location())

        def run(*args: Any, **kwargs: Any) -> Any:
            with self._at_work(sender):
                return work(*args, **kwargs)

        return run

    @contextmanager
    def _at_work(self, sender: Sender) -> Iterator[None]:
        here = self.here
        if here is self._own or here.sender is not None:  # work that a thread gives to itself
            yield
            return
        here.sender = sender
        try:
            with self._mode.in_this_thread():
                yield
        finally:
            here.sender = None


def _only_pins_memory(thread: threading.Thread) -> bool:
    """Return whether a thread is a DataLoader's own."""
    target = getattr(thread, "_target", None)
    return str(getattr(target, "__module__", "")).startswith("torch.utils.data")
