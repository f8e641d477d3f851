"""Find which line makes what a step keeps, where memory grows from step to step."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import memory, size, storage, tensors_in
from pytest_amp.lab.workbench import Workbench

__tracebackhide__ = unless_our_bug

# What a step still holds of itself, such as its loss and gradients, is gone after as many more.
LATER = 3


def kept_at(bench: Workbench, before: int) -> str | None:
    """Return the user's line that makes most of what a step of the amp arm keeps for good.

    Where graphs are kept, it is the last line of theirs: it makes what the step holds on to, and
    that holds everything else.

    Args:
        bench: builds the arm.
        before: how many steps to run first, in which caches fill.
    """
    watch = _Allocations()
    with (
        torch.compiler.set_stance("force_eager"),
        bench.built("amp") as resident,
        resident.active(),
    ):
        for index in range(before + 1 + LATER):
            bench.progress.at("locating", "amp", index + 1, before + 1 + LATER)
            if index == before:
                with watch:
                    resident.step()
            else:
                resident.step()
        gc.collect()
        alive = [each for each in watch.made if not each.held.expired()]
    in_graphs = [each.location for each in alive if each.in_graph and each.location]
    if in_graphs:
        return in_graphs[-1]
    bytes_: Counter[str] = Counter()
    for each in alive:
        if each.location is not None:
            bytes_[each.location] += each.bytes
    return max(bytes_, key=bytes_.__getitem__, default=None)


class _Allocation(NamedTuple):
    """Memory that an operator made.

    Attributes:
        held: the memory.
        bytes: its size.
        location: the user's line that called the operator.
        in_graph: whether gradients flow through it.
    """

    held: StorageWeakRef
    bytes: int
    location: str | None
    in_graph: bool


class _Allocations(DispatchMode):
    """Notes what the operators of a step allocate."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[_Allocation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        known = set(map(storage, given))
        in_graph = torch.is_grad_enabled() and any(each.requires_grad for each in given)
        for tensor in tensors_in(out):
            held = memory(tensor)
            if held is not None and storage(tensor) not in known:
                self.made.append(
                    _Allocation(StorageWeakRef(held), size(tensor), location(), in_graph)
                )
        return out
