"""The overflow drill: make one scaled loss infinite, and watch how the step copes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.phases.drill import Cycle, DrilledArm
from pytest_amp.lab.phases.overflow_injection import (
    Injection,
    is_not_finite,
    with_infinite_gradients,
)
from pytest_amp.lab.scaling.scaler import infinite, raised_by_scaler
from pytest_amp.lab.watch.nonfinite_trail import NonfiniteTrail
from pytest_amp.lab.watch.source import location_of
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Overflow, OverflowDrill

__tracebackhide__ = unless_our_bug

# An overflow halves the scale. If this many further steps are skipped, the scaler is stuck.
PATIENCE = 3


def overflow(bench: Workbench, steps: int, begin: int = 0) -> OverflowDrill | None:
    """Overflow one loss, and then others until each optimizer has been reached.

    The drill begins after the step `begin`, once a step was not skipped and the scale therefore
    fits. The result is None if that, or an `update()`, does not happen within `steps` steps.

    A step may well refuse a loss that is infinite, and yet bear gradients that are. So if it
    raises, the drill is repeated with a finite loss and infinite gradients, which decides.
    """
    inject = infinite
    drill = _drilled(bench, steps, begin, inject)
    if drill is not None and drill.overflows[-1].died:
        inject = with_infinite_gradients
        drill = _drilled(bench, steps, begin, inject)
    if drill is None or not any(map(_has_a_trail, drill.overflows)):
        return drill
    try:
        return _drilled(bench, steps, begin, inject, NonfiniteTrail()) or drill
    except Exception:  # noqa: BLE001 - what the drill has shown stands without its lines
        return drill


def _has_a_trail(found: Overflow) -> bool:
    """Return whether inf got into something, or out of it, on a line that is worth a search."""
    return bool(found.ruined or found.ruined_later or found.hidden)


def _drilled(
    bench: Workbench,
    steps: int,
    begin: int,
    inject: Callable[[Any], Any],
    trail: NonfiniteTrail | None = None,
) -> OverflowDrill | None:
    """Drill a fresh build.

    Args:
        bench: builds the arm.
        steps: how many steps to wait for an update.
        begin: after which step the drill begins.
        inject: makes scaled losses infinite.
        trail: follows what is not finite, where lines are looked for.
    """
    run = DrilledArm(bench, "overflow drill", steps)
    injection = Injection(run, inject, trail)
    with run.built(injection.installed(), trail or nullcontext()):
        normal = _normal(run, injection, begin)
        if normal is None:
            return None
        scaled, stepped = injection.calls, frozenset(injection.stepped)
        found: list[Overflow] = []
        for call in sorted({0, scaled // 2, scaled - 1}):
            found.append(_one(run, injection, call, stepped, normal))
            if trail is not None:
                bad = filter(is_not_finite, run.watch.trained.parameters)
                line = next(filter(None, map(trail.written_at, bad)), None)
                found[-1] = replace(found[-1], ruined_at=line)
            reached = {number for each in found for number in each.reached}
            ended = found[-1].raised or found[-1].died or not found[-1].recovered
            if ended or stepped <= reached:
                break
        return OverflowDrill(run.watch.use().optimizers, normal.moves, tuple(found))


def _normal(run: DrilledArm, injection: Injection, begin: int) -> Cycle | None:
    """Return the first update without a skipped step, after the step `begin`."""
    for _ in range(run.limit):
        injection.new_cycle()
        cycle = run.to_update()
        if cycle is None or (run.taken > begin and not cycle.skipped):
            return cycle if injection.calls else None
    return None


def _one(
    run: DrilledArm, injection: Injection, call: int, stepped: frozenset[int], normal: Cycle
) -> Overflow:
    cycle: Cycle | None = None
    next_loss_finite, recovered, raised, raised_at = True, True, None, None
    ruined: list[str] = []
    ruined_later: list[str] = []
    seen = injection.new_cycle(call)
    try:
        cycle = run.to_update()
        if cycle is not None:
            ruined = _ruined(run)
            following = _followed(run, injection)
            ruined_later = [] if ruined else _ruined(run)
            recovered = not following or not following[-1].skipped
            losses = following[0].losses if following else ()
            was_finite = all(map(math.isfinite, normal.losses))
            next_loss_finite = not was_finite or all(map(math.isfinite, losses))
    except (Exception, SystemExit) as error:
        if isinstance(error, AmpError) or not injection.done:
            raise
        if not raised_by_scaler(error):
            what = " ".join(str(error).split()).partition(". ")[0]
            died = f"{type(error).__name__}: {what}" if what else type(error).__name__
            return Overflow(scale=(seen.scale, None), died=died, died_at=location_of(error))
        raised, raised_at = str(error), location_of(error)
    idle = stepped - normal.by_scaler - seen.stepped  # the user's code may check for inf itself
    lowered = seen.scale_after is not None and seen.scale_after < seen.scale
    return Overflow(
        reached=tuple(sorted(seen.reached)),
        changed={number: tuple(names) for number, names in seen.changed.items()},
        ruined=tuple(ruined),
        ruined_later=tuple(ruined_later),
        skipped=tuple(sorted(idle | cycle.skipped)) if cycle else (),
        backward=seen.backward,
        backward_at=seen.backward_at,
        left_out=seen.backward and not seen.reached and not seen.stepped_with and not lowered,
        hidden=(
            seen.backward
            and not seen.dropped
            and not seen.reached
            and bool(seen.stepped_with)
            and not lowered
        ),
        cleared_at=seen.cleared_at,
        moves=cycle.moves if cycle else (),
        scale=(seen.scale, seen.scale_after),
        next_loss_finite=next_loss_finite,
        recovered=recovered,
        raised=raised,
        raised_at=raised_at,
    )


def _ruined(run: DrilledArm) -> list[str]:
    """Return the names of the trained parameters that are not finite."""
    return [
        name
        for optimizer in run.watch.trained.optimizers
        for name, param in run.parameters(optimizer)
        if is_not_finite(param)
    ]


def _followed(run: DrilledArm, injection: Injection) -> list[Cycle]:
    """Run further cycles, until one has a step that is not skipped, but at most `PATIENCE`."""
    following: list[Cycle] = []
    while len(following) < PATIENCE and (not following or following[-1].skipped):
        injection.new_cycle()
        cycle = run.to_update()
        if cycle is None:
            break
        following.append(cycle)
    return following
