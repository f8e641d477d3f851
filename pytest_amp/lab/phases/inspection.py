"""Inspect each arm, built once more and alone, by watching its steps from within.

The first steps, until each optimizer has stepped once, show the numbers at equal weights. The next
step is recorded operator by operator. One more shows casts that outlived an update. Compiled code
runs eagerly, since fused kernels can't be seen, and nothing here is timed.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import ArmName, Workbench
from pytest_amp.lab.scaling.step_watch import starting_at
from pytest_amp.lab.watch.losses import LossCurves
from pytest_amp.lab.watch.modules import Call, ModuleStack
from pytest_amp.lab.watch.numerics import Witness
from pytest_amp.lab.watch.operators import OpRecord
from pytest_amp.lab.watch.rounding import RoundedProducts
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.observations import (
    UNEXPLAINED_FROM,
    Gradient,
    Numerics,
    Operators,
    Parameter,
    ParityRun,
)

__tracebackhide__ = unless_our_bug


def inspect(
    bench: Workbench, fp32: ParityRun, amp: ParityRun, steps: int
) -> tuple[ParityRun, ParityRun, Numerics]:
    """Return both runs with what their inspected steps showed, and the first steps compared."""
    scale = amp.scales[-1] if amp.scales else None
    baseline, witness = Witness(), Witness()
    looked = _Look(bench, "fp32", steps, None)
    fp32 = looked.added_to(fp32, baseline)
    looked = _Look(bench, "amp", steps, scale)
    amp = looked.added_to(amp, witness)
    names = [parameter.name for parameter in amp.parameters]
    gradients = witness.gradients_beside(baseline)
    ran_in = amp.operators.main_reduced_dtype if amp.operators else None
    dtype = ran_in or dtype_name(bench.dtype)
    if any(each.error > UNEXPLAINED_FROM[dtype] for each in gradients):
        gradients = _with_rounding(bench, getattr(torch, dtype), gradients, baseline)
    return (
        fp32,
        amp,
        Numerics(
            gradients=tuple(
                replace(each, name=names[each.parameter] if each.parameter < len(names) else None)
                for each in gradients
            ),
            outputs=witness.outputs_beside(baseline),
        ),
    )


def _with_rounding(
    bench: Workbench, dtype: torch.dtype, gradients: tuple[Gradient, ...], baseline: Witness
) -> tuple[Gradient, ...]:
    """Add what rounding alone does to each gradient: fp32's first steps again, with it."""
    rounded = Witness()
    with (
        torch.compiler.set_stance("force_eager"),
        bench.built("fp32") as resident,
        resident.active(),
        rounded.watching(),
        RoundedProducts(dtype),
    ):
        while rounded.steps < baseline.steps:
            resident.step()
            rounded.steps += 1
    found = {each.parameter: each for each in rounded.gradients_beside(baseline)}
    rounded.let_go()
    return tuple(
        replace(
            each,
            rounding=found[each.parameter].error,
            zeroed_by_rounding=found[each.parameter].zeroed,
        )
        if each.parameter in found
        else each
        for each in gradients
    )


class Computing(NamedTuple):
    """A module that calls operators itself.

    Attributes:
        call: the module and its path.
        location: the user's line that its first operator comes from.
        flops: the FLOPs of its operators.
    """

    call: Call
    location: str | None
    flops: int


def computing_modules(bench: Workbench) -> list[Computing]:
    """Return the amp arm's modules that call operators themselves."""
    record = OpRecord()
    with bench.built("amp") as resident, resident.active(), record.watching():
        resident.step()
        calls = record.modules.calls()
    rows = [row for row in record.operators().rows if row.phase == "forward" and row.module]
    return [
        Computing(call, mine[0].location, sum(row.flops for row in mine))
        for call in calls
        if (mine := [row for row in rows if row.module == call.path])
    ]


class _Look:
    """The inspection of one arm."""

    def __init__(self, bench: Workbench, name: ArmName, steps: int, scale: float | None) -> None:
        self._bench = bench
        self._name: ArmName = name
        self._steps = steps
        self._scale = scale

    def added_to(self, run: ParityRun, witness: Witness) -> ParityRun:
        """Return the run with its operators and its parameters' names added."""
        bench = self._bench
        bench.progress.at("inspection", self._name)
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self._scale and math.isfinite(self._scale):
                stack.enter_context(starting_at(self._scale))
            resident = stack.enter_context(bench.built(self._name))
            stack.enter_context(resident.active())
            modules, record = ModuleStack(left=witness.module_left), OpRecord()
            try:
                with modules, witness.watching():
                    for _ in range(self._steps):
                        resident.step()
                        witness.steps += 1
                        if len(witness.parameters) >= len(run.parameters):
                            break
                record = OpRecord(witness.parameters)
                operators = self._recorded(resident, record)
                bench.device.synchronize()
            except Exception as error:
                # Compiled code may need more memory when it runs eagerly.
                if not bench.device.is_oom(error):
                    raise
                operators = Operators(
                    hidden=("memory ran out in the inspected step",), hidden_reduced=True
                )
            names = modules.parameter_names()
            found = [(names.get(id(each)), record.place_of(each)) for each in witness.parameters]
            witness.let_go()
        return replace(run, operators=operators, parameters=_with_places(run.parameters, found))

    def _recorded(self, resident: Any, record: OpRecord) -> Operators:
        losses = LossCurves()
        with record.watching():
            losses.append(resident.step())
            record.next_step()
            resident.step()
        returned = [curve[0] for curve in losses.read().values()]
        return record.operators(returned)


def _with_places(
    parameters: tuple[Parameter, ...], found: list[tuple[str | None, str | None]]
) -> tuple[Parameter, ...]:
    if len(parameters) != len(found):
        return parameters
    return tuple(
        replace(each, name=name, location=location)
        for each, (name, location) in zip(parameters, found, strict=True)
    )
