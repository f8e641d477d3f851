"""Follow inf and NaN through the operators of many steps, into what outlives the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode, written_into
from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import floating, is_finite, memory, storage, tensors_in

__tracebackhide__ = unless_our_bug


@dataclass(frozen=True)
class Made:
    """Where inf or NaN was first made of finite numbers.

    Attributes:
        op: the operator that made it.
        location: the user's line that called it.
    """

    op: str
    location: str | None


@dataclass(frozen=True)
class _Trail:
    """What is known of memory that holds inf or NaN.

    Attributes:
        held: the memory. A weak reference keeps its address from being used again.
        origin: where the first of it was made.
        location: the user's line that wrote it here.
    """

    held: StorageWeakRef
    origin: Made
    location: str | None


class NonfiniteTrail(DispatchMode):
    """Knows, of a tensor that is not finite, which line wrote that and where it was first made.

    Of a tensor that has become finite, it knows where that happened.

    What was not finite before it was entered has no trail.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trails: dict[int, _Trail] = {}
        self._cleared: dict[int, tuple[StorageWeakRef, str | None]] = {}

    def written_at(self, tensor: torch.Tensor) -> str | None:
        """Return the line that first wrote inf or NaN into the tensor's memory."""
        trail = self._of(tensor)
        return trail.location if trail else None

    def origin_of(self, tensor: torch.Tensor) -> Made | None:
        """Return where the tensor's inf or NaN was first made."""
        trail = self._of(tensor)
        return trail.origin if trail else None

    def cleared_at(self, tensor: torch.Tensor) -> str | None:
        """Return the line that made the tensor finite of something that was not."""
        held, line = self._cleared.get(storage(tensor), (None, None))
        return line if held is not None and not held.expired() else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        before = next((trail for each in given if (trail := self._of(each))), None)
        known = set(map(storage, given))
        out = func(*args, **kwargs)
        new = [each for each in tensors_in(out) if storage(each) not in known]  # and no view
        for tensor in (*new, *written_into(func, args, kwargs)):
            held, parts = memory(tensor), floating(tensor)
            if held is None or not parts:
                continue
            if all(map(is_finite, parts)):
                if before is not None and _is_whole(tensor, held):
                    self._trails.pop(storage(tensor), None)
                    self._cleared[storage(tensor)] = StorageWeakRef(held), location()
            elif self._of(tensor) is None:
                line = location()
                origin = before.origin if before else Made(operator_name(func), line)
                self._trails[storage(tensor)] = _Trail(StorageWeakRef(held), origin, line)
        return out

    def _of(self, tensor: torch.Tensor) -> _Trail | None:
        trail = self._trails.get(storage(tensor))
        return None if trail is None or trail.held.expired() else trail


def _is_whole(tensor: torch.Tensor, held: torch.UntypedStorage) -> bool:
    """Return whether a tensor views all of its memory."""
    return tensor.numel() * tensor.element_size() >= held.nbytes()
