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


def scale_that_is_stuck(case: Case, found: Stuck) -> Word:
    """Return what AMP207 says of a scaler that is stuck in the parity run."""
    use, origin = case.seen.amp.scaler, case.seen.stuck_origin
    which = optimizer_name(use.optimizers, found.optimizer)
    counted = f"{found.skips} of {len(found.steps)}"
    if lost_finiteness_at(case.seen, found.since.step):
        why, origin = _OF_THE_LOSS, case.seen.nonfinite_origin
    else:
        why = "" if origin is None else _shown(origin, case.seen.dtype)
    if found.how == "stays":
        said = (
            f"the steps of {which} are skipped ({counted}) and the loss scale stays at "
            f"{found.scale:g} all the same: {_why_it_stays(use)}"
        )
    elif found.how == "low":
        said = (
            f"the loss scale is down at {found.scale:g}, and the steps of {which} are skipped all "
            f"the same ({counted}): no scale helps, since "
            + (why or "gradients are inf or NaN for another reason; look for a division by zero, "
                "a sqrt or log at 0, or float16 values beyond 65504")
        )  # fmt: skip
        why = ""
    else:
        said = (
            f"the GradScaler skipped {counted} steps of {which} after it had found a scale "
            f"({found.scale:g} at the end): see that zero_grad() runs after a skipped step too, "
            "and that growth_interval is not a few steps"
        )
    evidence = {"scale": found.scale, "skipped": found.skips, "steps": len(found.steps)}
    if origin is None:
        return Word(f"{said}; {why}" if why else said, evidence)
    return Word(
        f"{said}; {why}" if why else said,
        {**evidence, **origins.evidence(origin)},
        module=origin.module,
        location=origin.location,
    )


def _shown(origin: Origin, dtype: str) -> str:
    if origin.phase == "kept":
        at = f" at {origin.location}" if origin.location else ""
        return (
            f"gradients were inf or NaN before the backward pass{at} added to them: call "
            "zero_grad() after a skipped step too"
        )
    if origin.phase == "forward":
        what = (
            f"the loss is not finite before backward: {origins.place(origin)} makes {origin.made}"
            f"{origins.at_scale(origin)}{origins.made_of(origin)}"
        )
    else:
        what = origins.gradient(origin)
    return f"{what}; {origins.remedy(origin, dtype)}" if origin.at_one else what


def _why_it_stays(use: ScalerUse) -> str:
    if use.made_in_steps > 1 and use.made_in_steps >= len({step.step for step in use.steps}):
        return "a new GradScaler is made in each step, and forgets; make one before training"
    return "update() is not called on this GradScaler, or it has a floor of its own"
