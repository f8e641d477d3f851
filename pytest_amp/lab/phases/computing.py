"""Find the user's lines and the modules that compute something in the amp arm's forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.flops import is_heavy
from pytest_amp.lab.watch.forward_values import ForwardValues
from pytest_amp.lab.watch.modules import Call, ModuleStack
from pytest_amp.lab.watch.operators import OpRecord
from pytest_amp.lab.workbench import Workbench

__tracebackhide__ = unless_our_bug


class Line(NamedTuple):
    """A line of the user's that calls operators itself, rather than through a module of torch's.

    Attributes:
        location: the line, as ``file:line``.
        ops: the names of its operators.
    """

    location: str
    ops: tuple[str, ...]

    @property
    def has_products(self) -> bool:
        """Whether it calls matrix products, convolutions or attention."""
        return any(map(is_heavy, self.ops))


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
    """Run two steps of the amp arm, and return what computes something in their forward passes."""
    modules, record = ModuleStack(), OpRecord()
    with bench.built("amp") as resident, resident.active():
        eager = torch.compiler.set_stance("force_eager")
        with eager, modules, ForwardValues(modules).watching() as values:
            resident.step()
        with record.watching():
            resident.step()
        calls = record.modules.calls()
    torchs = {call.path for call in modules.calls() if is_torchs(call.module)}
    rows = [row for row in record.operators().rows if row.phase == "forward"]
    return (
        [
            Line(location, own)
            for location, calls_of in values.called.items()
            if (own := _once(op for op, module in calls_of if module not in torchs))
        ],
        [
            Module(call, own_rows[0].location, sum(row.flops for row in own_rows))
            for call in calls
            if (own_rows := [row for row in rows if row.module == call.path])
        ],
    )


def is_torchs(module: object) -> bool:
    """Return whether a module's class is torch's own."""
    return type(module).__module__.partition(".")[0] == "torch"


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return (*dict.fromkeys(names),)
