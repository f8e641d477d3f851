"""Find where numbers stop being finite, by running a step again under watch in a fresh build."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.scaling.scaler import set_scale
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.first_nonfinite import FirstNonfinite
from pytest_amp.lab.watch.nonfinite_trail import NonfiniteTrail
from pytest_amp.lab.watch.state import MadeModules
from pytest_amp.lab.workbench import Resident, Workbench
from pytest_amp.observations import Origin

__tracebackhide__ = unless_our_bug


def locate(bench: Workbench, step: int, *, guarded: bool = True) -> Origin | None:
    """Find what made the loss of the amp arm's step `step`, from 0, infinite or NaN.

    If nothing in that step did, or only from what was not finite already, the step before is looked
    at too: what it left behind, such as weights, may have been ruined there.

    Args:
        bench: builds the arm.
        step: the step.
        guarded: whether a GradScaler skips steps whose gradients are not finite, so that these ruin
            nothing.

    Returns:
        The first operator that did; None if everything in these steps was finite.
    """
    found = _made_at(bench, step, guarded)
    if step and (found is None or found.largest == math.inf):
        found = _made_at(bench, step - 1, guarded) or found
    return found


def _made_at(bench: Workbench, step: int, guarded: bool) -> Origin | None:
    with _run_up_to(bench, step) as resident:
        watch = _watched(resident, step)
    return watch.forward if guarded else watch.first


def locate_stuck(bench: Workbench, step: int, scale: float) -> Origin | None:
    """Find what keeps the GradScaler skipping from the amp arm's step `step` on.

    That step is watched at its own loss scale, and the next one at a scale of 1, which tells what
    the scale does from what the step itself does.

    Args:
        bench: builds the arm.
        step: the step, from 0.
        scale: its loss scale.
    """
    with _run_up_to(bench, step) as resident:
        own = _watched(resident, step).of_gradients
        with _scaled_by_one():
            at_one = _watched(resident, step + 1).of_gradients
    if at_one is not None and at_one.phase != "kept":
        return replace(at_one, scale=scale, at_one=True)
    found = at_one or own
    return None if found is None else replace(found, scale=scale, at_one=False)


def locate_state(bench: Workbench, steps: int, name: str) -> Origin | None:
    """Find which operator first made the inf or NaN that the amp arm's state ends with.

    Args:
        bench: builds the arm.
        steps: how many steps to run.
        name: the name of the parameter or buffer that is not finite then.
    """
    modules, trail = MadeModules(), NonfiniteTrail()
    with (
        torch.compiler.set_stance("force_eager"),
        bench.built("amp") as resident,
        resident.active(),
        trail,
    ):
        for index in range(steps):
            bench.progress.at("locating", "amp", index + 1, steps)
            resident.step()
            bad = modules.nonfinite_tensors().get(name)
            if bad is not None:
                made = trail.origin_of(bad)
                return Origin(index, made.op, None, made.location) if made else None
    return None


@contextmanager
def _run_up_to(bench: Workbench, step: int) -> Iterator[Resident]:
    """Build the amp arm and run the steps before that one, with the arm active."""
    with bench.built("amp") as resident, resident.active():
        for index in range(step):
            bench.progress.at("locating", "amp", index + 1, step + 1)
            resident.step()
        bench.progress.at("locating", "amp", step + 1, step + 1)
        yield resident


def _watched(resident: Resident, step: int) -> FirstNonfinite:
    with FirstNonfinite(step).watching() as watch:
        resident.step()
    return watch


@contextmanager
def _scaled_by_one() -> Iterator[None]:
    """Set the scale of each GradScaler to 1 before it scales a loss."""

    def around(original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        set_scale(scaler, 1.0)
        return original(scaler, *args, **kwargs)

    with subscribed(scale=around):
        yield
