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
        _said(found, use, why, anew=anew),
        {
            "scale": found.scale,
            "skipped": found.skips,
            "steps": len(found.steps),
            **(origins.evidence(origin) if origin else {}),
        },
        module=origin.module if origin else None,
        location=_where(found, use, origin, anew=anew),
    )


# A scale that grows after fewer steps than this is over the edge again before long.
_A_FEW_STEPS = 20


def _where(found: Stuck, use: ScalerUse, origin: Origin | None, *, anew: bool) -> str | None:
    """Return the line of what is to be changed: the scaler's own, or where gradients overflow."""
    elsewhere = origin is not None and (origin.at_one or origin.phase == "kept")
    if anew or (found.how == "again" and grows_soon(use) and not elsewhere):
        return use.made_at or (origin.location if origin else use.scaled_at)
    return (origin.location if origin else None) or use.scaled_at


def grows_soon(use: ScalerUse) -> bool:
    """Return whether the scale grows after so few steps that it keeps overflowing."""
    return use.growth_interval is not None and use.growth_interval < _A_FEW_STEPS


def _said(found: Stuck, use: ScalerUse, why: str, *, anew: bool) -> str:
    which = optimizer_name(use.optimizers, found.optimizer)
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
        f"({found.scale:g} at the end): {_advice(use)}{further}"
    )


def _advice(use: ScalerUse) -> str:
    if grows_soon(use):
        often = "step" if use.growth_interval == 1 else f"{use.growth_interval} steps"
        return (
            f"its scale grows after every {often}, and so overflows again and again; leave "
            "growth_interval at 2000"
        )
    return "see that zero_grad() runs after a skipped step too, and that the scale is lowered then"


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
