"""Find casts up from a reduced dtype whose results are only cast down again, and what they hold.

What merely moves values about, such as a view, `cat` or dropout, has no need of float32, and is
followed. Memory is counted when a backward pass begins, by what is still alive then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import TO_COPY, Tensors, is_reduced, memory, size, storage
from pytest_amp.observations import RoundTrip

_MOVES = frozenset((
    "_to_copy", "cat", "clone", "constant_pad_nd", "flip", "gather", "index", "index_select",
    "masked_fill", "max_pool2d_with_indices", "native_dropout", "relu", "repeat", "roll",
))  # fmt: skip


class _Held(NamedTuple):
    """Memory that a tensor had, and may still have."""

    memory: StorageWeakRef
    bytes: int

    @property
    def alive(self) -> int:
        """Its bytes; 0 once it is free."""
        return 0 if self.memory.expired() else self.bytes


@dataclass(eq=False)
class _Trip:
    """A cast up.

    Attributes:
        source: what was cast.
        root: its result's memory, as long as that has the values of the source.
        location: the user's line of the cast.
        module: the module that it is part of.
        wide: its result, and what that was moved to.
        copies: what its root was cast down to.
        bytes: the bytes of all that it and the casts down made.
        returned: whether anything of it was cast down.
        needed: whether an operator has worked on anything wide.
        held: the bytes that were there on its account when a backward pass began.
    """

    source: StorageWeakRef
    root: int | None
    location: str | None
    module: str | None
    wide: list[_Held] = field(default_factory=list)
    copies: list[_Held] = field(default_factory=list)
    bytes: int = 0
    returned: bool = False
    needed: bool = False
    held: int = 0


class RoundTrips:
    """Follows what is cast up. It is told of each operator of a forward pass, once it has run."""

    def __init__(self) -> None:
        self._trips: list[_Trip] = []
        self._wide: dict[int, tuple[_Trip, ...]] = {}
        self._masks: dict[int, StorageWeakRef] = {}

    def begin(self, inputs: Tensors, outputs: Tensors, module: str | None) -> None:
        """Follow a cast up that the step asks for. Autocast casts up for what needs it."""
        held = memory(inputs[0])
        if held is not None and outputs and outputs[0].dtype is torch.float32:
            place = storage(outputs[0])
            trip = _Trip(StorageWeakRef(held), place, location(), module, _held(outputs))
            trip.bytes = size(outputs[0])
            self._trips.append(trip)
            self._wide[place] = (trip,)

    def note(self, func: Any, inputs: Tensors, outputs: Tensors) -> None:
        """Take note of any other operator, with its floating point inputs and outputs."""
        is_cast = func is TO_COPY and bool(inputs and outputs)
        if self._wide and (trips := self._trips_of(inputs)):
            if is_cast and is_reduced(outputs[0]):
                self._end(trips, inputs[0], outputs)
            elif self._only_moves(func, inputs, outputs):
                if _mutates(func):
                    trips[0].root = None
                self._follow(trips, inputs, outputs)
            elif not _reads_the_shape(func):
                for trip in trips:
                    trip.needed = True
        elif func is torch.ops.aten.bernoulli_.float:
            self._masks.update((int(each.memory.cdata), each.memory) for each in _held(outputs))

    def backward_begins(self) -> None:
        """Count what is alive now."""
        for trip in self._trips:
            copies = sorted(each.alive for each in trip.copies)
            if trip.source.expired():  # one of the copies is in its place
                del copies[-1:]
            trip.held = max(trip.held, sum(copies) + sum(each.alive for each in trip.wide))

    def found(self) -> tuple[RoundTrip, ...]:
        """Return the round trips, one for each line of the user's."""
        rows: dict[str | None, RoundTrip] = {}
        for trip in self._trips:
            if trip.needed or not trip.returned:
                continue
            row = rows.get(trip.location, RoundTrip(trip.location, trip.module))
            rows[trip.location] = replace(
                row, count=row.count + 1, bytes=row.bytes + trip.bytes, held=row.held + trip.held
            )
        return tuple(rows.values())

    def _end(self, trips: tuple[_Trip, ...], wide: torch.Tensor, narrow: Tensors) -> None:
        for trip in trips:
            trip.returned = True
        first = trips[0]  # of several that were moved together, one has the bytes
        first.bytes += sum(map(size, narrow))
        if first.root == storage(wide):
            first.copies += _held(narrow)

    def _trips_of(self, tensors: Tensors) -> tuple[_Trip, ...]:
        trips = [trip for tensor in tensors for trip in self._wide.get(storage(tensor), ())]
        return tuple(dict.fromkeys(trips))

    def _only_moves(self, func: Any, inputs: Tensors, outputs: Tensors) -> bool:
        """Return whether the operator moves values that were cast up, and nothing else."""
        name = operator_name(func).removeprefix("aten::")
        places = [storage(tensor) for tensor in inputs]
        if name in ("mul", "mul_"):  # dropout on a CPU
            return any(place in self._masks for place in places)
        if not all(place in self._wide for place in places):
            return False
        if name.removesuffix("_") in _MOVES:
            return bool(outputs)
        return bool(outputs) and not _mutates(func) and {*map(storage, outputs)} <= {*places}

    def _follow(self, trips: tuple[_Trip, ...], inputs: Tensors, outputs: Tensors) -> None:
        known = set(map(storage, inputs))
        for tensor in outputs:
            if storage(tensor) not in known:
                self._wide[storage(tensor)] = trips
                trips[0].wide += _held([tensor])
                trips[0].bytes += size(tensor)
        for tensor in inputs:  # a mask as wide as what it masks could be half of that
            mask = self._masks.get(storage(tensor))
            if mask is not None:
                trips[0].wide.append(_Held(mask, size(tensor) // 2))


def _mutates(func: Any) -> bool:
    return bool(getattr(getattr(func, "_schema", None), "is_mutable", True))


def _reads_the_shape(func: Any) -> bool:
    name = operator_name(func).removeprefix("aten::")
    return name.endswith("_like") or name.startswith("new_")


def _held(tensors: Tensors) -> list[_Held]:
    found = [(memory(tensor), size(tensor)) for tensor in tensors]
    return [_Held(StorageWeakRef(held), bytes_) for held, bytes_ in found if held is not None]
