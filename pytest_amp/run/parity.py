"""The parity run: one arm alone in memory, step by step, its losses, scaler and peak kept."""

from __future__ import annotations

import torch

from pytest_amp.errors import none_of_ours
from pytest_amp.records import Floor, Losses, Operators, ParityRun, Start
from pytest_amp.run.arm import ArmName, Resident, Workbench, optimizers_stepping
from pytest_amp.run.fingerprint import digest, first_inputs
from pytest_amp.run.losses import LossCurves
from pytest_amp.run.memory import peak_memory
from pytest_amp.run.ops import OpRecord
from pytest_amp.run.scaler import Replay, StepWatch

__tracebackhide__ = none_of_ours

BEFORE_NUDGE = 2


def run(
    bench: Workbench, name: ArmName, steps: int, replay: Replay | None = None
) -> tuple[ParityRun, Replay | None]:
    """Run an arm for `steps` steps and then one more under the operator record.

    Returns the record and the skips that another arm has to repeat. The amp arm's own `replay` is
    None; the fp32 arm gets what the amp arm skipped.
    """
    bench.progress.at("parity", name)
    with peak_memory(bench.device) as memory, bench.built(name) as resident:
        watch = StepWatch(replay)
        losses, start = _steps(bench, resident, watch, steps)
        peak = memory.stop()
        moved = None
        if start.parameters is not None:
            moved = digest(resident.parameters()) != start.parameters
        skips = watch.replay(resident.optimizers)
        with resident.active():
            flags = bench.globals.flags()
        operators = _inspect(bench, resident)
    record = ParityRun(
        losses=losses,
        start=start,
        peak_bytes=peak.peak_bytes,
        reserved_bytes=peak.reserved_bytes,
        scales=watch.log.scales,
        skipped_steps=len(watch.log.skipped),
        stalled=watch.log.stalled,
        moved=moved,
        operators=operators,
        flags=flags,
    )
    return record, skips


def floor(bench: Workbench, steps: int, replay: Replay | None, other_stream: bool) -> Floor:
    """fp32 again: first as before, to see whether it repeats, then nudged, to see how it drifts."""
    before = min(BEFORE_NUDGE, steps - 1)
    bench.progress.at("noise floor", "fp32")
    with bench.built("fp32") as resident:
        watch = StepWatch(replay)

        def nudge(step: int) -> None:
            if step == before:
                _nudge(resident, bench.dtype, bench.seed)
                if other_stream:
                    bench.device.manual_seed(bench.seed + 1)

        losses, start = _steps(bench, resident, watch, steps, "noise floor", nudge)
    return Floor(losses, start, before, other_stream)


def _steps(
    bench: Workbench,
    resident: Resident,
    watch: StepWatch,
    steps: int,
    phase: str = "parity",
    before_step: object = None,
) -> tuple[Losses, Start]:
    curves = LossCurves()
    inputs: list[tuple[str, ...]] = []
    name = resident.arm.name
    with (
        resident.active(),
        watch.installed(resident.optimizers),
        optimizers_stepping() as stepping,
    ):
        parameters = resident.parameters()
        start = digest(parameters) if parameters else None
        for index in range(steps):
            bench.progress.at(phase, name, index + 1, steps)
            if callable(before_step):
                before_step(index)
            if index == 0:
                with first_inputs(inputs):
                    curves.append(resident.step())
            else:
                watch.next_step()
                curves.append(resident.step())
        losses = curves.read()
    devices = tuple(sorted({param.device.type for param in parameters}))
    shared = any(optimizer in bench.optimizers_before for optimizer in stepping)
    bench.optimizers_before.update(stepping)
    return losses, Start(start, inputs[0] if inputs else None, devices, shared)


def _inspect(bench: Workbench, resident: Resident) -> Operators:
    bench.progress.at("inspection", resident.arm.name)
    record = OpRecord()
    with resident.active(), record.watching():
        resident.step()
    bench.device.synchronize()
    return record.operators()


@torch.no_grad()
def _nudge(resident: Resident, dtype: torch.dtype, seed: int) -> None:
    """Move every trained parameter by one ulp of `dtype`, up or down, from an own generator.

    Zeros stay: they are what they are in every dtype.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for param in resident.parameters():
        if not param.is_floating_point() or param.layout is not torch.strided:
            continue
        generator = generators.get(param.device)
        if generator is None:
            generator = torch.Generator(param.device).manual_seed(seed)
            generators[param.device] = generator
        sign = torch.randint(0, 2, param.shape, generator=generator, device=param.device) * 2 - 1
        exponent = torch.frexp(param.detach()).exponent - 1
        ulp = torch.ldexp(torch.full_like(param, torch.finfo(dtype).eps), exponent)
        param.add_(sign * ulp * (param != 0))
