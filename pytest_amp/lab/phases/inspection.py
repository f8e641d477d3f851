"""Inspect each arm, built once more and alone, by watching its steps from within.

The first steps, until each optimizer has stepped once, show the numbers at equal weights. The next
step is recorded operator by operator. One more shows casts that outlived an update. Compiled code
runs eagerly, since fused kernels can't be seen, and nothing here is timed.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.judge.alignment import departure, inputs_off
from pytest_amp.lab.arm import ArmName
from pytest_amp.lab.scaling.step_watch import starting_at
from pytest_amp.lab.watch.losses import LossCurves
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.numerics import Witness
from pytest_amp.lab.watch.operators import OpRecord
from pytest_amp.lab.watch.rounding import RoundedProducts
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.lab.workbench import Workbench
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
    is_reference_wide = bench.recipes.fp32.dtype == "float32"
    dtype = (is_reference_wide and ran_in) or dtype_name(bench.precision)
    computed = baseline.values.computed, witness.values.computed
    parted, off = departure(*computed, dtype), {}
    if parted or any(each.error > UNEXPLAINED_FROM[dtype] for each in gradients):
        rounded = _rounded(bench, getattr(torch, dtype), baseline.steps)
        gradients = _beside_rounding(gradients, rounded.gradients_beside(baseline))
        parted = departure(*computed, dtype, rounded.values.computed)
        off = inputs_off(*computed)
    return (
        fp32,
        amp,
        Numerics(
            gradients=tuple(
                replace(each, name=names[each.parameter] if each.parameter < len(names) else None)
                for each in gradients
            ),
            outputs=witness.outputs_beside(baseline),
            departure=parted,
            lines=tuple(witness.values.called),
            inputs_off=off,
        ),
    )


def _rounded(bench: Workbench, dtype: torch.dtype, steps: int) -> Witness:
    """Run fp32's first steps again, with the operands and results of its products rounded."""
    rounded, modules = Witness(), ModuleStack()
    with (
        torch.compiler.set_stance("force_eager"),
        bench.built("fp32") as resident,
        resident.active(),
        RoundedProducts(dtype),  # entered first, so that the watch sees what is not rounded yet
        modules,
        rounded.watching(modules),
    ):
        while rounded.steps < steps:
            resident.step()
            rounded.step_ended()
    rounded.let_go()
    return rounded


def _beside_rounding(
    gradients: tuple[Gradient, ...], rounded: tuple[Gradient, ...]
) -> tuple[Gradient, ...]:
    """Add what rounding alone does to each gradient."""
    found = {each.parameter: each for each in rounded}
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
            stack.enter_context(starting_at(self._scale))
            resident = stack.enter_context(bench.built(self._name))
            stack.enter_context(resident.active())
            modules, record = ModuleStack(left=witness.module_left), OpRecord()
            try:
                with modules, witness.watching(modules):
                    for _ in range(self._steps):
                        resident.step()
                        witness.step_ended()
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
            found = [
                (names.get(id(each)), record.place_of(each) or witness.place_of(each))
                for each in witness.parameters
            ]
            witness.let_go()
        return replace(
            run,
            operators=operators,
            parameters=_with_places(run.parameters, found),
        )

    def _recorded(self, resident: Any, record: OpRecord) -> Operators:
        losses = LossCurves()
        with record.watching():
            losses.append(resident.step())
            record.next_step()
            if record.has_cast_weights:
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
