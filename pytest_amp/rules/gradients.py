"""AMP302 and AMP304: whether the first step's gradients are fp32's, and where they leave."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_amp import units
from pytest_amp.judge.alignment import EPSILONS
from pytest_amp.judge.case import Case
from pytest_amp.observations import TIMES_ROUNDING, UNEXPLAINED_FROM, Departure, Gradient, Zeroed
from pytest_amp.rules import origins
from pytest_amp.rules.accumulation import MATTERS, differing_accumulation
from pytest_amp.rules.base import Mended, Word, rule
from pytest_amp.rules.comparable import are_comparable

# A gradient of which rounding fp32's products leaves nothing is itself what is left of sums that
# cancel, as of a bias before a normalisation.
RESIDUE = 0.9
# A tenth of a gradient's elements. ReLUs that flip because of rounding zero far fewer.
UNDERFLOW = 0.1
# Healthy first gradients of small networks have cosines above 0.99 and norms within 3% in either
# dtype. Beyond these limits something other than rounding is at work.
COSINES = {"float16": 0.98, "bfloat16": 0.9}
RATIOS = {"float16": 1.15, "bfloat16": 1.3}
OUTPUT_ULPS = 16
SMALLEST_FLOAT16 = 2.0**-24


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
    if case.seen.recipes.amp.dtype == "float32":  # nothing underflows in the wider dtype
        return []
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


@rule("AMP304", of=Mended)
def mended_by_lines(mended: Mended) -> Iterator[Word]:
    """Tell of lines whose rounding adds up over the steps, though none leaves fp32 by itself."""
    kept, value = units.listed(mended.lines), units.share(mended.value)
    yield Word(
        "no operator of the first step leaves fp32 by itself, but rounding adds up: with "
        f"{kept} kept in float32, loss_diff passes ({value}); do so "
        f"{origins.IN_FLOAT32}",
        {"lines": list(mended.lines), "value": mended.value},
        location=mended.lines[0],
    )


def _accuses(left: Departure, case: Case) -> bool:
    """Return whether what an operator computes is wrong enough to be told by itself.

    It is not if its output is infinite, of which AMP301 and AMP306 speak, or if the noise floor
    shows that rounding alone moves the model out of reach.
    """
    return (
        are_comparable(case)
        and case.gates["loss_diff"].verdict != "inconclusive"
        and UNEXPLAINED_FROM[case.seen.ran_in] < left.off < math.inf
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


def _is_unexplained(gradient: Gradient, case: Case) -> bool:
    """Return whether a gradient differs from fp32's by more than rounding the products explains.

    Without that, fixed limits have to do.
    """
    if gradient.rounding is None:
        least, off = COSINES[case.seen.precision], RATIOS[case.seen.precision]
        return gradient.cosine < least or not 1 / off <= gradient.ratio <= off
    return gradient.error > max(
        UNEXPLAINED_FROM[case.seen.ran_in], TIMES_ROUNDING * gradient.rounding
    )


def _beside_rounding(gradient: Gradient) -> str:
    if gradient.rounding is None:
        return ""
    error, rounding = units.share(gradient.error), units.share(gradient.rounding)
    return f" (it is off by {error}, and by {rounding} if fp32's products alone are rounded)"


def _gradients(case: Case) -> Sequence[Gradient]:
    """Return the gradients that can be compared, and that AMP213 does not explain."""
    if not are_comparable(case) or any(differing_accumulation(case)):
        return ()
    return [each for each in case.seen.numerics.gradients if math.isfinite(each.ratio)]


def _first_to_leave(case: Case) -> str | None:
    """Return the first module whose output is further from fp32's than the dtype explains."""
    budget = OUTPUT_ULPS * EPSILONS[case.seen.precision]
    return next((o.module for o in case.seen.numerics.outputs if not o.distance <= budget), None)


def _and_more(found: Sequence[Gradient]) -> str:
    return f" (and of {len(found) - 1} more)" if len(found) > 1 else ""


def _module_of(gradient: Gradient) -> str | None:
    return gradient.name.rpartition(".")[0] if gradient.name else None


def _location_of(gradient: Gradient, case: Case) -> str | None:
    """Return the user's line that uses the gradient's parameter, if it is known."""
    parameters = case.seen.amp.parameters
    known = gradient.parameter < len(parameters)
    return case.seen.amp.place_of(parameters[gradient.parameter]) if known else None
