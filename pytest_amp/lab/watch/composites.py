"""Tell which operators belong to a call that some devices and builds run as a single kernel."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.tensors import dtype_name, floats
from pytest_amp.lab.watch.threads import Composite, Threads

__tracebackhide__ = unless_our_bug


_IN_REDUCED = frozenset(("attention", "rnn"))


class Composites:
    """Follows these calls, and what autograd does for them in the backward pass.

    Args:
        threads: knows the place of each thread.

    Attributes:
        dtypes: the dtype that each call returned, by its number.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._count = 0
        # The nodes that each call made, which autograd numbers as they are made: first and end.
        self._first: list[int] = []
        self._made: list[tuple[int, Composite]] = []
        self.dtypes: dict[int, str] = {}

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the calls that are made inside."""
        with subscribed(
            attention=self._around("attention"),
            recurrence=self._around("rnn"),
            dropout=self._around("dropout"),
            rms_norm=self._around("rms_norm"),
        ):
            yield

    def behind(self, node: Any) -> Composite | None:
        """Return the call that made a node of autograd's; None if none did."""
        number = node._sequence_nr()
        place = bisect_right(self._first, number) - 1
        if place < 0:
            return None
        end, made = self._made[place]
        return made if number < end else None

    def _around(self, kind: str) -> Callable[..., Any]:
        def around(original: Any, *args: Any, **kwargs: Any) -> Any:
            here = self._threads.here
            if here.composite is not None:
                return original(*args, **kwargs)
            self._count += 1
            here.composite = now = Composite(kind, self._count)
            first = next_node()
            self.dtypes[now.number] = _foreseen(kind, args, autocast=here.autocast)
            try:
                out = original(*args, **kwargs)
            finally:
                here.composite = None
            if here.sender is None and next_node() > first:  # each thread numbers its own nodes
                self._first.append(first)
                self._made.append((next_node(), now))
            if made := floats(out):
                self.dtypes[now.number] = dtype_name(made[0].dtype)
            return out

        return around


def _foreseen(kind: str, args: Any, *, autocast: bool) -> str:
    """Return the dtype that a call will return, unless it is ended before, as in checkpointing."""
    tensors = floats(args)
    if autocast and tensors and kind in _IN_REDUCED:
        return dtype_name(torch.get_autocast_dtype(tensors[0].device.type))
    return dtype_name(tensors[0].dtype) if tensors else "-"


def next_node() -> int:
    """Return the number of the node that this thread's autograd makes next."""
    number: Any = torch._C._autograd._get_sequence_nr()
    return int(number)
