"""AMP3xx: whether the numbers stay what they were."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.judge.loss import seeds_differ
from pytest_amp.judge.parity import first_nonfinite, noise_floor, once_scaled
from pytest_amp.rules import origins
from pytest_amp.rules.base import Word, rule
from pytest_amp.rules.measurement import differing_starts

# The share of the elements that an update should change, from which on it is lost if they do not;
# and the share of all elements that it has to be about.
LOST = 0.5
CONCERNED = 0.01


@rule("AMP301")
def nonfinite_loss(case: Case) -> Iterator[Word]:
    """Look for a step at which the amp loss is not finite although fp32's is.

    Steps are passed over that a GradScaler skipped while it was looking for its first scale.
    """
    seen = case.seen
    step = first_nonfinite(once_scaled(seen.amp), seen.fp32.losses)
    if step is None:
        return
    origin = seen.nonfinite_origin
    if origin is None:
        place = "running that step again did not show where"
    elif origin.phase == "backward":
        place = f"{origins.gradient(origin)} in step {origin.step + 1}, which is not scaled"
    else:
        place = (
            f"the first to leave the finite range was {origins.place(origin)}"
            f"{origins.made_of(origin)}"
        )
    yield Word(
        f"the amp loss is not finite at step {step + 1}, where fp32's is; {place}; "
        f"{origins.remedy(origin, seen.dtype)}",
        {"step": step + 1, **origins.evidence(origin)},
        module=None if origin is None else origin.module,
        location=None if origin is None else origin.location,
        no_place=None if origin else "no operator of that step made inf or NaN when it ran again",
    )


@rule("AMP305")
def below_noise_floor(case: Case) -> Iterator[Word]:
    """Look for an inconclusive loss gate that is tighter than the model's own rounding noise."""
    gate, wanted = case.gates["loss_diff"], case.limits.max_loss_diff
    if gate.verdict != "inconclusive" or wanted is None or any(differing_starts(case)):
        return
    if seeds_differ(case.seen):  # then it is the spread of the seeds that is too wide
        return
    seen = case.seen
    floor = max(noise_floor(seen.fp32.losses, seen.floor, key) for key in seen.fp32.losses)
    if wanted < floor < math.inf:
        yield Word(
            f"max_loss_diff={wanted:g} is tighter than this model's own rounding noise "
            f"({units.share(floor)} after one ulp of {seen.dtype} in its weights): raise it above "
            "that, train more steps, or make the step less chaotic (a smaller learning rate)",
            {"max_loss_diff": wanted, "noise_floor": floor},
        )


@rule("AMP303")
def overflow_risk(case: Case) -> Iterator[Word]:
    """Look for fp32 activations beyond float16's 65504 although the amp loss is finite."""
    seen = case.seen
    if (
        seen.dtype != "float16"
        or first_nonfinite(once_scaled(seen.amp), seen.fp32.losses) is not None
    ):
        return
    beyond = [each for each in case.seen.numerics.outputs if each.largest > origins.LARGEST_FLOAT16]
    if beyond:
        worst = max(beyond, key=lambda each: each.largest)
        yield Word(
            f"the fp32 arm's activations reach {worst.largest:.3g} after {worst.module}, beyond "
            f"float16's {origins.LARGEST_FLOAT16:.0f}: keep that part in float32 "
            "(torch.autocast(..., enabled=False)), normalise before it, or use bfloat16",
            {"largest": worst.largest, "modules": [each.module for each in beyond]},
            module=worst.module,
            location=case.seen.amp.line_in(worst.module),
        )


@rule("AMP307")
def lost_updates(case: Case) -> Iterator[Word]:
    """Look for updates of reduced tensors that leave most of what they should change as it was."""
    operators = case.seen.amp.operators
    for update in operators.updates if operators else ():
        lost = update.lost / max(1, update.wanted)
        if lost <= LOST or update.wanted < CONCERNED * update.elements:
            continue
        yield Word(
            f"{units.share(lost)} of the elements that this update should change stay as they "
            f"were: what it adds is smaller than {update.dtype} resolves beside what is there, so "
            "it is lost in each step; keep the average or sum in float32, and cast it where it is "
            "used",
            {"lost": lost, "wanted": update.wanted, "elements": update.elements},
            location=update.location,
        )


@rule("AMP306")
def nonfinite_state(case: Case) -> Iterator[Word]:
    """Look for buffers and parameters that are not finite under amp although the loss recovered.

    If the loss is not finite at the end either, the state is a consequence, and AMP301 speaks.
    """
    names, origin = ruined_state(case), case.seen.state_origin
    if not names:
        return
    module = names[0].rpartition(".")[0] or None
    made = f", first made by {origin.op}" if origin else ""
    several = f" (and {len(names) - 1} more)" if names[1:] else ""
    yield Word(
        f"{names[0]}{several} is not finite after the amp arm's steps{made}, and is in fp32: an "
        "overflow in a forward pass stays there for good, and whatever reads it later, such as an "
        "evaluation, is not finite either; a skipped step does not undo it: keep what overflows "
        "in float32 (torch.autocast(..., enabled=False)), or scale its inputs down",
        {"state": names},
        module=module,
        location=origin.location if origin else case.seen.amp.line_in(module),
    )


def ruined_state(case: Case) -> list[str]:
    """Return the names of the state that AMP306 speaks of."""
    amp, fp32 = case.seen.amp, case.seen.fp32
    names = [name for name in amp.nonfinite_state if name not in fp32.nonfinite_state]
    return names if all(math.isfinite(curve[-1]) for curve in amp.losses.values()) else []
