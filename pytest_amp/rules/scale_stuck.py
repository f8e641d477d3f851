"""Say why a GradScaler keeps skipping steps, as far as a watched step has shown it (AMP207)."""

from __future__ import annotations

from pytest_amp.judge.case import Case
from pytest_amp.judge.parity import lost_finiteness_at
from pytest_amp.judge.skips import Stuck
from pytest_amp.observations import Origin, ScalerUse
from pytest_amp.rules import origins
from pytest_amp.rules.base import Word
from pytest_amp.rules.scale_drill import optimizer_name

_OF_THE_LOSS = "the loss is inf or NaN before backward, and AMP301 says where"
_GUESSES = (
    "gradients are inf or NaN for another reason; look for a division by zero, a sqrt or log at "
    "0, or float16 values beyond 65504"
)


def scale_that_is_stuck(case: Case, found: Stuck) -> Word:
    """Return what AMP207 says of a scaler that is stuck in the parity run."""
    use, origin = case.seen.amp.scaler, case.seen.stuck_origin
    why = "" if origin is None else _shown(origin, case.seen.dtype)
    if lost_finiteness_at(case.seen, found.since.step):
        why, origin = _OF_THE_LOSS, case.seen.nonfinite_origin
    anew = found.how == "stays" and made_anew(use)
    return Word(
        _said(found, optimizer_name(use.optimizers, found.optimizer), why, anew=anew),
        {
            "scale": found.scale,
            "skipped": found.skips,
            "steps": len(found.steps),
            **(origins.evidence(origin) if origin else {}),
        },
        module=origin.module if origin else None,
        location=use.made_at if anew else origin.location if origin else None,
    )


def _said(found: Stuck, which: str, why: str, *, anew: bool) -> str:
    counted = f"{found.skips} of {len(found.steps)}"
    if found.how == "low":
        return (
            f"the loss scale is down at {found.scale:g}, and the steps of {which} are skipped all "
            f"the same ({counted}): no scale helps, since {why or _GUESSES}"
        )
    further = f"; {why}" if why else ""
    if found.how == "stays":
        reason = (
            "a new GradScaler is made in each step, and forgets; make one before training"
            if anew
            else "update() is not called on this GradScaler, or it has a floor of its own"
        )
        return (
            f"the steps of {which} are skipped ({counted}) and the loss scale stays at "
            f"{found.scale:g} all the same: {reason}{further}"
        )
    return (
        f"the GradScaler skipped {counted} steps of {which} after it had found a scale "
        f"({found.scale:g} at the end): see that zero_grad() runs after a skipped step too, and "
        f"that growth_interval is not a few steps{further}"
    )


def _shown(origin: Origin, dtype: str) -> str:
    """Say what the watched steps have shown; only what the scale does not mend has a remedy."""
    if origin.phase == "kept":
        at = f" at {origin.location}" if origin.location else ""
        return (
            f"gradients were inf or NaN before the backward pass{at} added to them: call "
            "zero_grad() after a skipped step too"
        )
    if origin.phase == "backward":
        what = origins.gradient(origin)
    else:
        what = (
            f"the loss is not finite before backward: {origins.place(origin)} makes {origin.made}"
            f"{origins.at_scale(origin)}{origins.made_of(origin)}"
        )
    return f"{what}; {origins.remedy(origin, dtype)}" if origin.at_one else what


def made_anew(use: ScalerUse) -> bool:
    """Return whether a GradScaler is made in each step."""
    return use.made_in_steps > 1 and use.made_in_steps >= len({step.step for step in use.steps})
