"""AMP213: whether micro-batches add up to one batch under amp as they do in the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_amp import units
from pytest_amp.judge.alignment import EPSILONS
from pytest_amp.judge.case import Case
from pytest_amp.observations import REDUCED, Accumulated, AccumulatedGradient
from pytest_amp.rules.base import Word, rule
from pytest_amp.rules.comparable import are_comparable
from pytest_amp.rules.scale_drill import first_differing

# The share in the norm of all gradients from which a gradient is looked at by itself.
MATTERS = 0.05
# The fp32 arm's gradient is a sum of its micro-batches up to this; with noise or clipping by value
# it is not.
A_SUM = 1e-3
# What is lost is compared with the dtype's rounding step, and with what autocast does to the sum.
# Four micro-batches that are added up in bfloat16 lose 0.4 of a step, 256 lose 3 (tests/catalogue).
HARMFUL = 4
# Gradients of another size or direction than autocast makes them.
COSINE = 0.95
RATIO_WITHIN = 0.05
OTHER_SIZE = 1.3


@rule("AMP213")
def accumulation_differs(case: Case) -> Iterator[Word]:
    """Look for micro-batches that do not add up under amp, and do in the reference.

    What changes scaled gradients or the scale meanwhile is left to AMP203, AMP208 and AMP209, and
    reduced parameters to AMP102.
    """
    return differing_accumulation(case)


def differing_accumulation(case: Case) -> Iterator[Word]:
    """Yield at most one word: the other arithmetic, or other micro-batches, or another divisor."""
    drill, use = case.seen.accumulated, case.seen.amp.scaler
    if drill is None or use.updates_in_midst or use.updates_before_step or first_differing(case):
        return
    if any(each.dtype in REDUCED for each in case.seen.amp.parameters):
        return
    gradients = [each for each in drill.gradients if each.share >= MATTERS]
    lost = [each for each in gradients if _is_lost(each, case.seen.precision)]
    if lost:
        yield _lost(max(lost, key=lambda each: each.errors[1]), len(lost), drill, case)
    elif gradients and drill.steps[0] == drill.steps[1] and are_comparable(case):
        yield from _others(gradients, drill)


def _is_lost(each: AccumulatedGradient, dtype: str) -> bool:
    error = each.errors[1]
    return each.errors[0] <= A_SUM and error > max(EPSILONS[dtype], each.rounding)


def _lost(worst: AccumulatedGradient, count: int, drill: Accumulated, case: Case) -> Word:
    more = f" (and of {count - 1} more)" if count > 1 else ""
    what = "this line changes it" if drill.edited_at else "something changes it"
    harmful = worst.errors[1] > HARMFUL * EPSILONS[case.seen.precision]
    return Word(
        f"under amp the gradient of {worst.parameter}{more} is not the sum of its "
        f"{_batches(worst.passes[1])}: it is off by {units.share(worst.errors[1])}, and by "
        f"{units.share(worst.errors[0])} in fp32; {what} between the first backward pass and the "
        "step: add micro-batches up in float32, and clip, round or send them once, when all are "
        "there",
        _evidence(worst),
        severity=None if harmful else "warning",
        module=worst.parameter.rpartition(".")[0] or None,
        location=drill.edited_at or drill.backward_at,
    )


def _others(gradients: Sequence[AccumulatedGradient], drill: Accumulated) -> Iterator[Word]:
    worst = max(gradients, key=lambda each: (each.share, each.parameter))
    fp32, amp = worst.passes
    if fp32 != amp and all(each.passes == worst.passes and _is_another(each) for each in gradients):
        emptied = "; this line empties it in between" if amp < fp32 and drill.emptied_at else ""
        yield Word(
            f"under amp the optimizer steps on {_batches(amp)}, and in fp32 on {_batches(fp32)}: "
            f"the gradient of {worst.parameter} is {units.ratio(worst.ratio)} fp32's{emptied}; "
            "zero gradients once per optimizer step, in both arms alike",
            _evidence(worst),
            location=(drill.emptied_at if amp < fp32 else None) or drill.backward_at,
        )
    elif fp32 == amp > 1:
        for times, what in ((amp, "once too rarely"), (1 / amp, "once too often")):
            if all(_is_times(each, times) for each in gradients):
                yield Word(
                    f"under amp every gradient is {units.ratio(worst.ratio)} fp32's, after "
                    f"{_batches(amp)} in both arms: the loss is divided by their number {what}; "
                    "divide each loss by it in both arms, before backward",
                    _evidence(worst),
                    location=drill.backward_at,
                )


def _is_times(each: AccumulatedGradient, times: float) -> bool:
    return abs(each.ratio / times - 1) <= RATIO_WITHIN and each.cosine >= COSINE


def _is_another(each: AccumulatedGradient) -> bool:
    return each.cosine < COSINE or abs(math.log(each.ratio)) > math.log(OTHER_SIZE)


def _batches(count: int) -> str:
    return f"{count} micro-batch" + ("" if count == 1 else "es")


def _evidence(worst: AccumulatedGradient) -> dict[str, Any]:
    return {
        "parameter": worst.parameter,
        "micro_batches": list(worst.passes),
        "off": list(worst.errors),
        "rounding": worst.rounding,
        "ratio": worst.ratio,
        "cosine": worst.cosine,
    }
