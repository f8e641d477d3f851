"""Whether the first gradients of both arms may be compared."""

from __future__ import annotations

from pytest_amp.judge.case import Case
from pytest_amp.judge.loss import draws_differ
from pytest_amp.rules.measurement import differing_starts, first_losses_differ
from pytest_amp.rules.recipes import differing_recipes
from pytest_amp.rules.scale_drill import first_differing


def are_comparable(case: Case) -> bool:
    """Return whether they come from equal weights, data and random numbers, and one loss scale."""
    return not (
        draws_differ(case.seen.fp32, case.seen.amp)
        or any(differing_starts(case))
        or any(differing_recipes(case))
        or first_losses_differ(case)
        or first_differing(case)  # AMP203 and AMP208 say why
        or case.seen.amp.scaler.updates_in_midst  # AMP209 does
    )
