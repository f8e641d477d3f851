"""Find the places of what went wrong, by running watched steps: behind a sign of it, and only then.

A test without such a sign pays nothing.
"""

from __future__ import annotations

from dataclasses import replace

from pytest_amp.errors import unless_our_bug
from pytest_amp.judge import parity, skips
from pytest_amp.judge.case import Case
from pytest_amp.lab.arm import Workbench
from pytest_amp.lab.phases import first_backward, nonfinite
from pytest_amp.lab.phases.drill import attempted
from pytest_amp.rules.numerics import UNDERFLOW, ran_in, underflows, unexplained

__tracebackhide__ = unless_our_bug


def located(bench: Workbench, case: Case) -> Case:
    """Return the case with the places that AMP207, AMP301, AMP302 and AMP304 speak of."""
    seen, scaler = case.seen, case.seen.amp.scaler
    bad = parity.first_nonfinite(parity.once_scaled(seen.amp), seen.fp32.losses)
    if bad is not None:
        origin = nonfinite.locate(bench, bad, guarded=scaler.live)
        seen = replace(seen, nonfinite_origin=origin)
    stuck = skips.stuck(scaler)
    if stuck is not None and not parity.lost_finiteness_at(seen, stuck.since.step):
        since = stuck.since
        origin = attempted(
            "search for what the GradScaler skips",
            lambda: nonfinite.locate_stuck(bench, since.step, since.scale),
            bench.notes.append,
        )
        seen = replace(seen, stuck_origin=origin)
    scale = seen.amp.scales[-1] if seen.amp.scales else None
    if lost := underflows(case):
        much = max(UNDERFLOW, max(each.zeroed for each in lost) / 2)
        place = attempted(
            "search for where gradients turn to zero",
            lambda: first_backward.zeroed(bench, scale, much),
            bench.notes.append,
        )
        seen = replace(seen, zeroed=place)
    elif seen.numerics.departure is None and unexplained(case):
        left = attempted(
            "search for where gradients leave fp32's",
            lambda: first_backward.departed(bench, scale, ran_in(case), seen.numerics.inputs_off),
            bench.notes.append,
        )
        seen = replace(seen, gradients_left=left)
    return replace(case, seen=seen)
