"""AMP203 and AMP208: whether optimizers see the same gradients at two loss scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import GradientAtTwoScales
from pytest_amp.rules.base import Word, rule
from pytest_amp.rules.measurement import first_losses_differ

# Healthy gradients are equal to the last bit at two loss scales, and faulty ones differ by 4e-4 or
# more. Two builds at one scale may differ as well, but must differ by much less.
DIFFERS_FROM = 1e-4
TIMES_NOISE = 10
RATIO_WITHIN = 0.01


@rule("AMP203")
def modified_before_unscale(case: Case) -> Iterator[Word]:
    """Look for gradients that depend on the loss scale because they were changed while scaled.

    The rule is silent if gradients flowed in float16, where they may have underflowed, and if they
    depend on the scale because they bypassed the scaler, which is AMP208.
    """
    drill = case.seen.two_scales
    differing = first_differing(case)
    if drill is None or not differing or drill.in_half or past_the_scaler(case):
        return
    worst = max(differing, key=lambda each: each.difference)
    everything = [each for each in drill.gradients if each.optimizer == worst.optimizer]
    optimizer = optimizer_name(drill.optimizers, worst.optimizer)
    line = drill.edited_at.get(worst.optimizer) or next(iter(drill.edited_at.values()), None)
    if drill.loss_differs and drill.derived_at:
        why = (
            "the loss itself depends on the loss scale, as a penalty does that is made of scaled "
            "gradients: divide what torch.autograd.grad returns by scaler.get_scale() first"
        )
        line = drill.derived_at
    else:
        what = "this line" if line else "something"
        other = "" if line else ", or another GradScaler than the one that unscales has scaled them"
        why = (
            f"{what} changes them while they are still scaled, as clipping does{other}: call "
            "scaler.unscale_(optimizer) before it, once per step"
        )
    yield Word(
        f"what {optimizer} sees depends on the loss scale: between "
        f"{drill.scales[1]:g} and {drill.scales[0]:g}, {len(differing)} of {len(everything)} "
        f"gradients differ, that of {worst.parameter} by {units.share(worst.difference)}; {why}",
        {
            "optimizer": kind_of(drill.optimizers, worst.optimizer),
            "parameter": worst.parameter,
            "difference": worst.difference,
            "ratio": worst.ratio,
            "scales": list(drill.scales),
            "differing": len(differing),
        },
        module=worst.parameter.rpartition(".")[0] or None,
        location=line,
        no_place="no line was seen to change gradients while they were scaled",
    )


@rule("AMP208")
def scaler_bypassed(case: Case) -> Iterator[Word]:
    """Look for an optimizer or a loss that bypasses the GradScaler.

    If the drill showed no gradients, a scaler whose `step()` was never called is all that can be
    told.
    """
    use, drill = case.seen.amp.scaler, case.seen.two_scales
    if drill is not None and drill.gradients:
        bypassed = past_the_scaler(case)
        if bypassed is not None:
            yield bypassed[1]
    elif use.scaled and not use.steps and use.optimizers:
        yield Word(
            f"a GradScaler scaled losses ({use.scaled} times), and its step() was never called: "
            f"{optimizer_name(use.optimizers, 0)} stepped on what it was given, overflows and all; "
            "call scaler.step(optimizer) in place of optimizer.step()",
            {"scaled": use.scaled},
            location=case.seen.amp.stepped_at(0),
        )


def past_the_scaler(case: Case) -> tuple[int, Word] | None:
    """Return the optimizer that bypasses the scaler, with what shows it; None if none does.

    Either all its differing gradients scale with the loss scale, or some backward pass began at a
    loss that was not scaled.
    """
    drill, differing = case.seen.two_scales, first_differing(case)
    if drill is None or not differing:
        return None
    number, first = differing[0].optimizer, differing[0]
    which, times = optimizer_name(drill.optimizers, number), drill.scales[0] / drill.scales[1]
    evidence = {
        "optimizer": kind_of(drill.optimizers, number),
        "parameter": first.parameter,
        "ratio": first.ratio,
        "scales": list(drill.scales),
        "unscaled_backward_passes": drill.unscaled,
    }
    module = first.parameter.rpartition(".")[0] or None
    if all(_is_about(each.ratio, times) for each in differing):
        by_scaler = any(each.optimizer == number for each in case.seen.amp.scaler.steps)
        remedy = (
            "call unscale_() once, after the last backward pass that adds to them"
            if by_scaler
            else "call scaler.step(optimizer) in place of optimizer.step(), for each optimizer"
        )
        return number, Word(
            f"{which} steps on gradients that are still scaled: at {times:g} times the loss scale "
            f"that of {first.parameter} is {times:g} times as large; {remedy}",
            evidence,
            module=module,
            location=case.seen.amp.stepped_at(number),
        )
    if drill.unscaled:
        return number, Word(
            f"{drill.unscaled} of {drill.backwards} backward passes began at "
            f"a loss that was not scaled, and the GradScaler divides the gradients of {which} by "
            f"the loss scale all the same (that of {first.parameter} differs by "
            f"{units.share(first.difference)} between two scales); call scaler.scale(loss)"
            ".backward() for every loss",
            evidence,
            module=module,
            location=case.seen.amp.stepped_at(number),
        )
    return None


def first_differing(case: Case) -> Sequence[GradientAtTwoScales]:
    """Return the gradients that depend on the loss scale, of the first optimizer that has any.

    What that optimizer did with them may well be why those of the others differ.
    """
    drill = case.seen.two_scales
    if drill is None or first_losses_differ(case) is not None:
        return ()
    if case.seen.amp.scaler.updates_in_midst:
        return ()  # AMP209 says why
    differing = [
        each
        for each in drill.gradients
        if each.difference > max(DIFFERS_FROM, TIMES_NOISE * each.noise)
    ]
    return [each for each in differing if each.optimizer == differing[0].optimizer]


def _is_about(ratio: float | None, expected: float) -> bool:
    return ratio is not None and abs(ratio / expected - 1) < RATIO_WITHIN


def kind_of(kinds: Sequence[str], number: int) -> str:
    """Return the class name of an optimizer, or a stand-in if it is not known."""
    return kinds[number] if number < len(kinds) else "the optimizer"


def optimizer_name(kinds: Sequence[str], number: int) -> str:
    """Name an optimizer: ``AdamW``, and which one if there are several."""
    kind = kind_of(kinds, number)
    return f"{kind} (optimizer {number + 1} of {len(kinds)})" if len(kinds) > 1 else kind
