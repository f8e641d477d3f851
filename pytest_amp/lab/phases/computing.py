"""Find the user's lines and the modules that compute something in the amp arm's forward pass."""

from __future__ import annotations

from typing import NamedTuple

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Workbench
from pytest_amp.lab.watch.modules import Call
from pytest_amp.lab.watch.operators import OpRecord
from pytest_amp.observations import OpRow

__tracebackhide__ = unless_our_bug


class Line(NamedTuple):
    """A line of the user's that calls operators itself, rather than through a module of torch's.

    Attributes:
        location: the line, as ``file:line``.
        ops: the names of its operators.
        flops: the FLOPs of its operators.
    """

    location: str
    ops: tuple[str, ...]
    flops: int


class Module(NamedTuple):
    """A module that calls operators itself.

    Attributes:
        call: the module and its path.
        location: the user's line that its first operator comes from.
        flops: the FLOPs of its operators.
    """

    call: Call
    location: str | None
    flops: int


def lines_and_modules(bench: Workbench) -> tuple[list[Line], list[Module]]:
    """Run a step of the amp arm, and return what computes something in its forward pass."""
    record = OpRecord()
    with bench.built("amp") as resident, resident.active(), record.watching():
        resident.step()
        calls = record.modules.calls()
    rows = [row for row in record.operators().rows if row.phase == "forward"]
    torchs = {call.path for call in calls if is_torchs(call.module)}
    lines: dict[str, list[OpRow]] = {}
    for row in rows:
        if row.location is not None and row.module not in torchs:
            lines.setdefault(row.location, []).append(row)
    return (
        [
            Line(location, (*dict.fromkeys(row.op for row in own),), _flops(own))
            for location, own in lines.items()
        ],
        [
            Module(call, own[0].location, _flops(own))
            for call in calls
            if (own := [row for row in rows if row.module == call.path])
        ],
    )


def is_torchs(module: object) -> bool:
    """Return whether a module's class is torch's own."""
    return type(module).__module__.partition(".")[0] == "torch"


def _flops(rows: list[OpRow]) -> int:
    return sum(row.flops for row in rows)
