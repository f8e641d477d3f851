"""Run one arm alone in memory, and keep its losses, its scaler's log and its peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Arm, ArmName, Setup, Step
from pytest_amp.lab.machine.compiled import graphs_compiled
from pytest_amp.lab.scaling.optimizers import Trained
from pytest_amp.lab.scaling.step_watch import Replay, StepWatch, starting_at
from pytest_amp.lab.watch.fingerprint import Inputs, first_inputs, pieces
from pytest_amp.lab.watch.float64 import Float64
from pytest_amp.lab.watch.losses import LossCurves
from pytest_amp.lab.watch.memory import peak_memory
from pytest_amp.lab.watch.rounding import RoundedProducts
from pytest_amp.lab.watch.state import MadeModules
from pytest_amp.lab.watch.tensors import dtype_name, floating
from pytest_amp.lab.workbench import Resident, Workbench
from pytest_amp.observations import Floor, Losses, Parameter, ParityRun, Start

__tracebackhide__ = unless_our_bug

BEFORE_NUDGE = 2
# Left out of the peak if more steps follow, since kernels are chosen and compiled in them.
FIRST_STEPS = 2


def run(
    bench: Workbench, name: ArmName, steps: int, replay: Replay | None = None
) -> tuple[ParityRun, Replay | None]:
    """Run an arm for `steps` steps.

    Args:
        bench: what arms are built on.
        name: the arm.
        steps: how many steps to run.
        replay: the skips to repeat: for the fp32 arm, what the amp arm skipped.

    Returns:
        The record, and the skips that another arm has to repeat.
    """
    bench.progress.at("parity", name)
    modules, before = MadeModules(), graphs_compiled()
    with peak_memory(bench.device) as memory:
        with bench.built(name) as resident:
            watch, clock = StepWatch(replay), _Stopwatch()

            def settle(step: int) -> None:
                if step == min(FIRST_STEPS, steps - 1):
                    memory.settled()
                clock.step_begins()

            def done() -> None:
                clock.step_ends()
                memory.mark()

            losses, start = _steps(
                bench, resident, watch, steps, before_step=settle, after_step=done
            )
            peak, saved = memory.stop(), resident.checkpoint
            with resident.active():
                flags = bench.globals.flags()
            record = ParityRun(
                losses=losses,
                start=start,
                levels=peak.levels,
                peak_unknown=peak.unknown,
                held=watch.trained.held(),
                scales=watch.log.scales,
                skipped_steps=sum(watch.log.skipped()),
                stalled=watch.log.stalled,
                moved=watch.trained.moved,
                parameters=_parameters(watch.trained),
                flags=flags,
                scaler=watch.use(),
                fastest_step_s=clock.fastest_s,
                nonfinite_state=modules.nonfinite_state(),
                optimizers=watch.recipe.read(),
                modules=modules.described(),
                checkpoint=None if saved is None else tuple(saved.state),
                checkpoint_at=None if saved is None else saved.location,
                compiled=graphs_compiled() - before,
            )
            skips = watch.replay()
            del watch, saved  # they keep alive what the arm trained
        peak = memory.less_kept(peak)
    return replace(record, peak_bytes=peak.peak_bytes, reserved_bytes=peak.reserved_bytes), skips


class _Stopwatch:
    """Keeps the seconds of the fastest step, which the rest of the machine disturbed least."""

    def __init__(self) -> None:
        self.fastest_s = math.inf
        self._began = 0.0

    def step_begins(self) -> None:
        self._began = perf_counter()

    def step_ends(self) -> None:
        self.fastest_s = min(self.fastest_s, perf_counter() - self._began)


def at_last_scale(bench: Workbench, run: ParityRun, steps: int) -> Losses:
    """Run the amp arm's first `steps` steps again, from the loss scale that `run` ended with."""
    bench.progress.at("parity", "amp")
    with starting_at(run.scales[-1]), bench.built("amp") as resident:
        losses, _ = _steps(bench, resident, StepWatch(), steps)
    return losses


def rounded(bench: Workbench, steps: int, replay: Replay | None) -> Losses:
    """Run fp32 with the products of every step rounded to the amp dtype: what that can reach."""
    bench.progress.at("noise floor", "fp32")
    with (
        torch.compiler.set_stance("force_eager"),
        bench.built("fp32") as resident,
        RoundedProducts(bench.precision),
    ):
        losses, _ = _steps(bench, resident, StepWatch(replay), steps, "noise floor")
    return losses


def anchor(bench: Workbench, steps: int, replay: Replay | None, budget_s: float) -> Losses:
    """Run fp32 with everything that follows from its parameters in float64: the truth, nearly.

    Returns:
        The losses of all steps, or of those that began within the budget.

    Raises:
        Exception: whatever can't be computed in float64 raises.
    """
    bench.progress.at("float64", "fp32")
    ends = perf_counter() + budget_s

    def is_enough() -> bool:
        bench.device.synchronize()  # else the host would run ahead of it
        return perf_counter() >= ends

    with (
        torch.compiler.set_stance("force_eager"),
        bench.built("fp32", _in_float64) as resident,
    ):
        losses, _ = _steps(
            bench,
            resident,
            StepWatch(replay),
            steps,
            "float64",
            is_enough=is_enough,
        )
    return losses


def _in_float64(setup: Setup) -> Setup:
    def set_up(arm: Arm) -> Step:
        step, float64 = setup(arm), Float64()
        arm.on_teardown(float64.undo)

        def wide() -> Any:
            with float64.active():
                return step()

        return wide

    return set_up


def floor(bench: Workbench, steps: int, replay: Replay | None, other_stream: bool) -> Floor:
    """Run fp32 again: first unchanged, to see if it repeats, then nudged, to see how it drifts.

    The nudge waits for an optimizer's first step, which shows what there is to nudge.
    """
    bench.progress.at("noise floor", "fp32")
    repeated = steps
    with bench.built("fp32") as resident:
        watch = StepWatch(replay)

        def nudge_once(step: int) -> None:
            nonlocal repeated
            if step < min(BEFORE_NUDGE, steps - 1) or repeated < steps:
                return
            if other_stream:
                bench.device.manual_seed(bench.seed + 1)
            elif not watch.trained.parameters:
                return
            nudge(watch.trained.parameters, bench.precision, bench.seed)
            repeated = step

        losses, start = _steps(bench, resident, watch, steps, "noise floor", nudge_once)
    return Floor(losses, start, repeated, other_stream)


def _steps(
    bench: Workbench,
    resident: Resident,
    watch: StepWatch,
    steps: int,
    phase: str = "parity",
    before_step: Callable[[int], None] = lambda _: None,
    after_step: Callable[[], None] = lambda: None,
    is_enough: Callable[[], bool] = lambda: False,
) -> tuple[Losses, Start]:
    curves = LossCurves()
    inputs: list[Inputs] = []
    name, trained = resident.arm.name, watch.trained
    with resident.active(), watch.installed():
        for index in range(steps):
            bench.progress.at(phase, name, index + 1, steps)
            before_step(index)
            if index == 0:
                with first_inputs(inputs):
                    curves.append(resident.step())
            else:
                watch.next_step()
                curves.append(resident.step())
            after_step()
            if is_enough():
                break
        losses = curves.read()
    shared = any(optimizer in bench.optimizers_before for optimizer in trained.optimizers)
    bench.optimizers_before.update(trained.optimizers)
    devices = tuple(sorted({str(param.device) for param in trained.parameters}))
    first = inputs[0] if inputs else Inputs(None, ())
    return losses, Start(
        trained.start,
        first.digests,
        devices,
        shared,
        trained.samples,
        first.samples,
        first.location,
        first.names,
    )


def _parameters(trained: Trained) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            dtype_name(each.dtype), trained.has_gradient(each), optimizer=owner, size=each.numel()
        )
        for each, owner in zip(trained.parameters, trained.owners, strict=True)
    )


@torch.no_grad()
def nudge(parameters: list[torch.Tensor], dtype: torch.dtype, seed: int) -> None:
    """Move every parameter by one ulp of `dtype`, up or down, using a generator of its own.

    Zeros stay, since they are exact in every dtype.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for param in parameters:
        for part in floating(param):
            device = part.device
            generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
            with _flat(part) as flat:
                for _, piece in pieces(flat):
                    sign = 2 * torch.randint(2, piece.shape, generator=generator, device=device) - 1
                    # A float32's exponent bits alone are the power of two below it, or 0 for 0.
                    bits = piece.float().view(torch.int32) & 0x7F800000
                    piece.add_(sign * bits.view(torch.float32) * torch.finfo(dtype).eps)


@contextmanager
def _flat(part: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give a plain tensor in one dimension; a copy is written back if no view is possible."""
    flat = part.reshape(-1)
    yield flat
    if not part.is_contiguous():
        part.copy_(flat.view(part.shape))
