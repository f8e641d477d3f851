"""Count the calls of operators that are alike in one row, and sum rows up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.tensors import Tensors, matrix_dims, stretch
from pytest_amp.observations import OpRow

__tracebackhide__ = unless_our_bug

# What calls in one row have in common: a key has the values of these fields.
_COMMON = (
    "op", "dtype", "out", "module", "phase", "autocast", "function", "composite",
    "chosen", "lacks_autocast", "computed",
)  # fmt: skip

Key = tuple[Any, ...]


class Tally:
    """A row that is still being counted."""

    def __init__(self, row: OpRow) -> None:
        self._row = row
        self._count = self._flops = self._moved = self._bytes = self._largest = 0
        self._stretch = 1
        self._seconds = 0.0
        self._dims: set[int] = set()
        self._composites: set[int] = set()

    def add(
        self,
        inputs: Tensors,
        outputs: Tensors,
        flops: int,
        moved: int,
        sizes: Sequence[int],
        seconds: float,
        composite: int | None = None,
    ) -> None:
        """Add a call.

        Args:
            inputs: its floating point inputs.
            outputs: its floating point outputs.
            flops: its FLOPs.
            moved: the bytes that it read and wrote.
            sizes: the bytes of each output that it allocated.
            seconds: the host's time until it returned.
            composite: the number of the call that it is part of, if it is part of one.
        """
        if composite is not None:
            self._composites.add(composite)
        self._count += 1
        self._seconds += seconds
        self._flops += flops
        self._moved += moved
        self._bytes += sum(sizes)
        self._largest = max(self._largest, *sizes, 0)
        if flops:
            self._dims.update(matrix_dims(self._row.op, inputs, outputs))
        elif self._row.op == "aten::_to_copy" and inputs:
            self._stretch = max(self._stretch, stretch(inputs[0]))

    def row(self, dtypes: Mapping[int, str]) -> OpRow:
        """Return the row as counted so far.

        Args:
            dtypes: what each call returned that others are part of, by its number.
        """
        return replace(
            self._row,
            count=self._count,
            flops=self._flops,
            moved=self._moved,
            bytes=self._bytes,
            largest=self._largest,
            stretch=self._stretch,
            seconds=self._seconds,
            dims=tuple(sorted(self._dims)),
            part_of=tuple((number, dtypes[number]) for number in sorted(self._composites)),
        )


class Rows:
    """Holds a tally for each row."""

    def __init__(self) -> None:
        self._tallies: dict[Key, Tally] = {}

    def get(self, key: Key) -> Tally | None:
        """Return the row's tally; None if there is none yet."""
        return self._tallies.get(key)

    def begin(self, key: Key, location: str | None) -> Tally:
        """Begin a row.

        Args:
            key: what its calls have in common.
            location: the user's line that made the first call.
        """
        row = OpRow(**dict(zip(_COMMON, key, strict=True)), location=location)
        tally = self._tallies[key] = Tally(row)
        return tally

    def counted(self, dtypes: Mapping[int, str]) -> tuple[OpRow, ...]:
        """Return the rows as counted so far.

        Args:
            dtypes: what each call returned that others are part of, by its number.
        """
        return tuple(tally.row(dtypes) for tally in self._tallies.values())


def summed(rows: Iterable[OpRow], key: str, what: str) -> dict[str, int]:
    """Sum one column by the values of another, leaving out sums of zero."""
    total: dict[str, int] = {}
    for row in rows:
        amount = getattr(row, what)
        if amount:
            total[getattr(row, key)] = total.get(getattr(row, key), 0) + amount
    return total
