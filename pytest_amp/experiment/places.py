"""Find the places of what went wrong, by running watched steps: behind a sign of it, and only then.

A test without such a sign pays nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.judge import parity, skips
from pytest_amp.judge.case import Case
from pytest_amp.lab.phases import first_backward, kept, nonfinite
from pytest_amp.lab.phases.drill import attempted
from pytest_amp.lab.watch.assignments import assigned_at
from pytest_amp.lab.workbench import Workbench
from pytest_amp.rules.gradients import UNDERFLOW, underflows, unexplained
from pytest_amp.rules.measurement import differing_starts
from pytest_amp.rules.memory import growth
from pytest_amp.rules.numerics import ruined_state

__tracebackhide__ = unless_our_bug


def located(bench: Workbench, case: Case) -> Case:
    """Return the case with the places that its signs call for."""
    for look in (_of_the_loss, _of_skips, _of_gradients, _of_state, _of_growth, _of_inputs):
        case = replace(case, seen=replace(case.seen, **look(bench, case)))
    return case


def _of_the_loss(bench: Workbench, case: Case) -> dict[str, Any]:
    """Return where the loss stopped being finite, for AMP301."""
    seen = case.seen
    bad = parity.first_nonfinite(parity.once_scaled(seen.amp), seen.fp32.losses)
    if bad is None:
        return {}
    return {"nonfinite_origin": nonfinite.locate(bench, bad, guarded=seen.amp.scaler.live)}


def _of_skips(bench: Workbench, case: Case) -> dict[str, Any]:
    """Return what a GradScaler keeps skipping, for AMP207."""
    stuck = skips.stuck(case.seen.amp.scaler)
    if stuck is None or parity.lost_finiteness_at(case.seen, stuck.since.step):
        return {}
    since = stuck.since
    origin = attempted(
        "search for what the GradScaler skips",
        lambda: nonfinite.locate_stuck(bench, since.step, since.scale),
        bench.notes.append,
    )
    return {"stuck_origin": origin}


def _of_gradients(bench: Workbench, case: Case) -> dict[str, Any]:
    """Return where gradients turn to zero or leave fp32's, for AMP302 and AMP304."""
    seen = case.seen
    scale = seen.amp.scales[-1] if seen.amp.scales else None
    if lost := underflows(case):
        much = max(UNDERFLOW, max(each.zeroed for each in lost) / 2)
        place = attempted(
            "search for where gradients turn to zero",
            lambda: first_backward.zeroed(bench, scale, much),
            bench.notes.append,
        )
        return {"zeroed": place}
    if seen.numerics.departure is None and unexplained(case):
        left = attempted(
            "search for where gradients leave fp32's",
            lambda: first_backward.departed(bench, scale, seen.ran_in, seen.numerics.inputs_off),
            bench.notes.append,
        )
        return {"gradients_left": left}
    return {}


def _of_state(bench: Workbench, case: Case) -> dict[str, Any]:
    """Return where the inf or NaN comes from that stays in the state, for AMP306."""
    names = ruined_state(case)
    if not names:
        return {}
    origin = attempted(
        "search for what made state inf or NaN",
        lambda: nonfinite.locate_state(bench, len(case.seen.amp.levels), names[0]),
        bench.notes.append,
    )
    return {"state_origin": origin}


def _of_growth(bench: Workbench, case: Case) -> dict[str, Any]:
    """Return what makes that which a step keeps, for AMP502."""
    if not growth(case.seen.amp):
        return {}
    line = attempted(
        "search for what is kept",
        lambda: kept.kept_at(bench, len(case.seen.amp.levels) // 2),
        bench.notes.append,
    )
    return {"kept_at": line}


def _of_inputs(_: Workbench, case: Case) -> dict[str, Any]:
    """Return which line gave the first inputs their name, for AMP003."""
    amp, words = case.seen.amp, differing_starts(case)
    if not any(word.evidence["what"] == "first inputs" for word in words):
        return {}
    start = replace(amp.start, inputs_made_at=assigned_at(amp.start.inputs_named))
    return {"amp": replace(amp, start=start)}
