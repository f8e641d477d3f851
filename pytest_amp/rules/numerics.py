"""AMP3xx: whether the numbers stay what they were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_amp import units
from pytest_amp.judge.alignment import EPSILONS
from pytest_amp.judge.case import Case
from pytest_amp.judge.parity import first_nonfinite, noise_floor, once_scaled
from pytest_amp.observations import TIMES_ROUNDING, UNEXPLAINED_FROM, Departure, Gradient, Zeroed
from pytest_amp.rules import origins
from pytest_amp.rules.accumulation import differing_accumulation
from pytest_amp.rules.base import Word, rule
from pytest_amp.rules.comparable import are_comparable
from pytest_amp.rules.measurement import differing_starts

# A gradient of which rounding fp32's products leaves nothing is itself what is left of sums that
# cancel, as of a bias before a normalisation.
RESIDUE = 0.9
# A tenth of a gradient's elements. ReLUs that flip because of rounding zero far fewer.
UNDERFLOW = 0.1
# The share in the norm of all gradients from which a gradient is compared by itself.
MATTERS = 0.05
# Healthy first gradients of small networks have cosines above 0.99 and norms within 3% in either
# dtype. Beyond these limits something other than rounding is at work.
COSINES = {"float16": 0.98, "bfloat16": 0.9}
RATIOS = {"float16": 1.15, "bfloat16": 1.3}
OUTPUT_ULPS = 16
# The share of the elements that an update should change, from which on it is lost if they do not;
# and the share of all elements that it has to be about.
LOST = 0.5
CONCERNED = 0.01
SMALLEST_FLOAT16 = 2.0**-24


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
    seen = case.seen
    floor = max(noise_floor(seen.fp32.losses, seen.floor, key) for key in seen.fp32.losses)
    if wanted < floor < math.inf:
        yield Word(
            f"max_loss_diff={wanted:g} is tighter than this model's own rounding noise "
            f"({units.share(floor)} after one ulp of {seen.dtype} in its weights): raise it above "
            "that, train more steps, or make the step less chaotic (a smaller learning rate)",
            {"max_loss_diff": wanted, "noise_floor": floor},
        )


@rule("AMP302")
def gradient_underflow(case: Case) -> Iterator[Word]:
    """Look for parameters of which a tenth of the gradient or more is zero only under AMP.

    The rule is silent if the forward pass overflows or a module's output has left fp32's, since
    that zeroes gradients by itself.
    """
    lost, place = underflows(case), case.seen.zeroed
    if not lost:
        return
    worst = max(lost, key=lambda each: (each.zeroed, each.share))
    yield Word(
        f"{units.share(worst.zeroed)} of the gradient of {worst.name or 'a parameter'} is zero "
        f"under amp and not in fp32{_and_more(lost)}{_first_lost(place)}: "
        f"{_why_lost(case.seen.dtype, place)}",
        {
            "zeroed": worst.zeroed,
            "parameters": [each.name for each in lost],
            "op": place.op if place else None,
            "node": place.node if place else None,
        },
        module=_module_of(worst),
        location=(place.location if place else None) or _location_of(worst, case),
    )


def underflows(case: Case) -> list[Gradient]:
    """Return the gradients of which AMP302 speaks."""
    lost = [
        each
        for each in _gradients(case)
        if each.zeroed >= UNDERFLOW
        and each.zeroed > 2 * (each.zeroed_by_rounding or 0.0)
        and (each.rounding or 0.0) < RESIDUE
    ]
    left = case.seen.numerics.departure
    overflowed = left is not None and math.isinf(left.off)
    return [] if overflowed or _first_to_leave(case) else lost  # these alone make gradients zero


def _first_lost(place: Zeroed | None) -> str:
    if place is None:
        return ""
    at = f" at {place.location}" if place.location else ""
    return (
        f"; the first to lose it is the gradient of {place.op or 'an operator'}{at} "
        f"({place.node}, {units.share(place.lost)})"
    )


def _why_lost(dtype: str, place: Zeroed | None) -> str:
    if dtype == "float16" and (place is None or place.expected < SMALLEST_FLOAT16):
        return (
            "it is smaller than float16 holds; scale the loss (arm.scaler), start from a larger "
            "scale, or use bfloat16"
        )
    known = (
        "bfloat16 has float32's range"
        if dtype == "bfloat16" or place is None
        else f"fp32's is {place.expected:.2g} there at this loss scale, which float16 does not lose"
    )
    return (
        f"{known}, so it does not underflow: something clamps it or rounds it away (a probability "
        "that is clamped at the dtype's own epsilon, a difference that rounds to 0); keep that "
        f"part in float32 {origins.IN_FLOAT32}"
    )


@rule("AMP304")
def gradient_mismatch(case: Case) -> Iterator[Word]:
    """Look for a first step that differs from fp32's by more than the dtype explains.

    That may show in gradients, of which only those with 5% or more of the norm of all count, since
    the direction of a tiny one is mostly rounding, or already in what an operator computes.
    """
    wrong, left = unexplained(case), case.seen.numerics.departure or case.seen.gradients_left
    if not wrong:
        if left is not None and _accuses(left, case):
            yield Word(
                f"{_departed(left)}, by more than {case.seen.dtype} explains: {_instead(left)}",
                {"op": left.op, "off": left.off, "inputs_off": left.inputs_off},
                module=left.module,
                location=left.place,
            )
        return
    worst = min(wrong, key=lambda each: (each.cosine, -abs(math.log(each.ratio or 1e-30))))
    yield Word(
        f"the first gradient of {worst.name or 'a parameter'} is not fp32's (cosine "
        f"{worst.cosine:.3f}, {units.ratio(worst.ratio)} its norm){_and_more(wrong)}, by more "
        f"than {case.seen.dtype} explains{_beside_rounding(worst)}{_on_its_way(left, case)}",
        {
            "cosine": worst.cosine,
            "ratio": worst.ratio,
            "error": worst.error,
            "rounding": worst.rounding,
            "first_to_leave": _first_to_leave(case),
            "op": left.op if left else None,
            "parameters": [each.name for each in wrong],
        },
        module=left.module if left else _module_of(worst),
        location=(left.place if left else None) or _location_of(worst, case),
    )


def unexplained(case: Case) -> list[Gradient]:
    """Return the gradients that AMP304 speaks of."""
    return [
        each for each in _gradients(case) if each.share >= MATTERS and _is_unexplained(each, case)
    ]


def _accuses(left: Departure, case: Case) -> bool:
    """Return whether what an operator computes is wrong enough to be told by itself.

    It is not if its output is infinite, of which AMP301 and AMP306 speak, or if the noise floor
    shows that rounding alone moves the model out of reach.
    """
    return (
        are_comparable(case)
        and case.gates["loss_diff"].verdict != "inconclusive"
        and UNEXPLAINED_FROM[ran_in(case)] < left.off < math.inf
    )


def _departed(left: Departure) -> str:
    module = f" in {left.module}" if left.module else ""
    what = f"{left.op}{module}" + (f" at {left.location}" if left.location else "")
    off = f"off by {units.share(left.off)}" if math.isfinite(left.off) else "not finite"
    if left.node is not None:
        return (
            f"the gradient of {what} ({left.node}, {left.dtype}) is the first to leave fp32's: it "
            f"is {off}, and what it is made of by {units.share(left.inputs_off)}"
        )
    return (
        f"{what} ({left.dtype}) is the first to leave fp32: its output is {off}, and its inputs "
        f"are off by {units.share(left.inputs_off)}"
    )


def _on_its_way(left: Departure | None, case: Case) -> str:
    """Say where the numbers part, and what to do there."""
    if left is None:
        found = _first_to_leave(case)
        going = f"; going forward, {found} is the first to leave fp32" if found else ""
        return f"{going}: look at what computes it, backward too"
    if left.node is not None:
        return f"; going backward, {_departed(left)}: look at how that is computed"
    return f"; going forward, {_departed(left)}: {_instead(left)}"


def _instead(left: Departure) -> str:
    if left.by_a_product:
        return (
            f"rounding the product at {left.by_a_product} that it is made from is enough for that, "
            f"so keep this product in float32 {origins.IN_FLOAT32}"
        )
    return f"keep that in float32 {origins.IN_FLOAT32}"


def ran_in(case: Case) -> str:
    """Return the dtype that the amp arm's products ran in, which a step may choose by itself."""
    operators = case.seen.amp.operators
    return (operators.main_reduced_dtype if operators else None) or case.seen.dtype


def _is_unexplained(gradient: Gradient, case: Case) -> bool:
    """Return whether a gradient differs from fp32's by more than rounding the products explains.

    Without that, fixed limits have to do.
    """
    if gradient.rounding is None:
        least, off = COSINES[case.seen.dtype], RATIOS[case.seen.dtype]
        return gradient.cosine < least or not 1 / off <= gradient.ratio <= off
    return gradient.error > max(UNEXPLAINED_FROM[ran_in(case)], TIMES_ROUNDING * gradient.rounding)


def _beside_rounding(gradient: Gradient) -> str:
    if gradient.rounding is None:
        return ""
    error, rounding = units.share(gradient.error), units.share(gradient.rounding)
    return f" (it is off by {error}, and by {rounding} if fp32's products alone are rounded)"


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


def _gradients(case: Case) -> Sequence[Gradient]:
    """Return the gradients that can be compared, and that AMP213 does not explain."""
    if not are_comparable(case) or any(differing_accumulation(case)):
        return ()
    return [each for each in case.seen.numerics.gradients if math.isfinite(each.ratio)]


def _first_to_leave(case: Case) -> str | None:
    """Return the first module whose output is further from fp32's than the dtype explains."""
    budget = OUTPUT_ULPS * EPSILONS[case.seen.dtype]
    return next((o.module for o in case.seen.numerics.outputs if not o.distance <= budget), None)


def _and_more(found: Sequence[Gradient]) -> str:
    return f" (and of {len(found) - 1} more)" if len(found) > 1 else ""


def _module_of(gradient: Gradient) -> str | None:
    return gradient.name.rpartition(".")[0] if gradient.name else None


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


def _location_of(gradient: Gradient, case: Case) -> str | None:
    """Return the user's line that uses the gradient's parameter, if it is known."""
    parameters = case.seen.amp.parameters
    known = gradient.parameter < len(parameters)
    return case.seen.amp.place_of(parameters[gradient.parameter]) if known else None
