"""AMP2xx: whether the GradScaler is used as it has to be, from what it did and from two drills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pytest_amp import units
from pytest_amp.codes import CODES
from pytest_amp.judge.rules.base import Case, Rule, Word
from pytest_amp.judge.rules.measurement import first_losses_differ
from pytest_amp.records import GradientAtTwoScales, ScalerStep
from pytest_amp.results import Finding

# Healthy gradients are the same to the last bit at two loss scales; faulty ones differ by 4e-4 and
# more. Two builds at one scale may differ too, and have to differ by much less.
DIFFERS_FROM = 1e-4
TIMES_NOISE = 10
RATIO_WITHIN = 0.01
# Once the scale has been found, a step in twenty may still overflow by itself.
STRAY_SKIPS = 2
STRAY_SHARE = 0.25
FLOOR_AFTER = 3
LEAST_SCALE = 1.0

# What a GradScaler of torch's own raises: the beginning of its message, what it means, the fix.
PROTOCOL = {
    "unscale_() has already been called": (
        "the gradients would be divided by the loss scale twice: call scaler.unscale_(optimizer) "
        "once per step, after the last backward pass; a wrapper that clips may do it by itself"
    ),
    "unscale_() is being called after step()": (
        "the optimizer has stepped already: put unscale_ (and clipping) before scaler.step(), and "
        "end each step with scaler.update()"
    ),
    "step() has already been called": (
        "scaler.step(optimizer) came twice without an update() between: call scaler.update() once "
        "at the end of each step, on every path through it, also where a step was skipped"
    ),
    "No inf checks were recorded for this optimizer": (
        "not one of the optimizer's parameters has a gradient: see that the scaled loss reaches "
        "them, and that zero_grad() does not come between backward and step"
    ),
    "No inf checks were recorded prior to update": (
        "update() without a step() before it: call scaler.step(optimizer), not optimizer.step()"
    ),
    "Attempted": (
        "no loss has been scaled: call scaler.scale(loss).backward(), not loss.backward()"
    ),
}


def protocol_violated(message: str, location: str | None = None) -> Finding | None:
    """What a GradScaler's exception means, told from its message; None where it is another one."""
    for beginning, meaning in PROTOCOL.items():
        if message.startswith(beginning):
            return Finding(
                "AMP204",
                CODES["AMP204"].name,
                CODES["AMP204"].severity,
                meaning,
                location=location,
                evidence={"raised": message},
            )
    return None


def scaler_with_bf16(case: Case) -> Iterator[Word]:
    operators = case.seen.amp.operators
    if not case.seen.amp.scaler.live or operators is None:
        return
    amounts = operators.flops_by_dtype if operators.reduced_flops() else operators.bytes_by_dtype
    if amounts.get("bfloat16") and not amounts.get("float16"):
        yield Word(
            "a GradScaler scales the loss of a step that runs in bfloat16, which has float32's "
            "range and needs none: it costs an inf check per step and can only skip steps; make "
            "it with enabled=False",
            {"scaled": case.seen.amp.scaler.scaled, "skipped_steps": case.seen.amp.skipped_steps},
        )


def modified_before_unscale(case: Case) -> Iterator[Word]:
    drill = case.seen.two_scales
    differing = _first_differing(case)
    if drill is None or not differing or drill.in_half or _bypassed(case):
        return
    worst = max(differing, key=lambda each: each.difference)
    everything = [each for each in drill.gradients if each.optimizer == worst.optimizer]
    yield Word(
        f"what {_which(drill.optimizers, worst.optimizer)} sees depends on the loss scale: between "
        f"{drill.scales[1]:g} and {drill.scales[0]:g}, {len(differing)} of {len(everything)} "
        f"gradients differ, that of {worst.parameter} by "
        f"{units.share(worst.difference)}; something changes them while they are still scaled, as "
        "clipping does: call scaler.unscale_(optimizer) before it, once per step",
        {
            "optimizer": _kind(drill.optimizers, worst.optimizer),
            "parameter": worst.parameter,
            "difference": worst.difference,
            "ratio": worst.ratio,
            "scales": list(drill.scales),
            "differing": len(differing),
        },
        module=worst.parameter.rpartition(".")[0] or None,
    )


def scaler_protocol(case: Case) -> Iterator[Word]:
    """What the scaler raised after an overflow; what it raises before ends the experiment."""
    drill = case.seen.overflow
    for each in drill.overflows if drill else ():
        found = protocol_violated(each.raised) if each.raised else None
        if found is not None:
            yield Word(
                f"after an overflow, torch raised {each.raised!r}: {found.message}", found.evidence
            )


def scheduler_on_skipped_step(case: Case) -> Iterator[Word]:
    kinds, skipped = case.seen.amp.scaler.optimizers, _skips_with_a_move(case)
    if skipped:
        number, step = skipped[0]
        where = f"in step {step + 1}" + (f" and {len(skipped) - 1} more" if skipped[1:] else "")
        yield _moved_on(_which(kinds, number), where, {"step": step + 1, "steps": len(skipped)})
        return
    drill = case.seen.overflow
    for each in drill.overflows if drill else ():
        usual, moves = Counter(drill.moves if drill else ()), Counter(each.moves)
        for number in each.skipped:
            if usual[number] and moves[number] >= usual[number]:
                which = _which(kinds, number)
                yield _moved_on(which, "in the overflow drill", {"moves": moves[number]})
                return


def _moved_on(which: str, where: str, evidence: Mapping[str, object]) -> Word:
    return Word(
        f"the learning-rate scheduler of {which} moved on a step that the GradScaler skipped "
        f"({where}): warm-up and decay run ahead of the training; call scheduler.step() only if "
        "the scale did not go down (before = scaler.get_scale(); scaler.update(); "
        "if scaler.get_scale() >= before)",
        evidence,
    )


def stepped_on_overflow(case: Case) -> Iterator[Word]:
    drill, bypassed = case.seen.overflow, _bypassed(case)
    for each in drill.overflows if drill else ():
        for number, changed in each.changed.items():
            if bypassed is not None and number == bypassed[0]:
                continue  # AMP208 says why
            more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
            wrong = "" if each.next_loss_finite else "; the next loss was not finite"
            yield Word(
                f"{_which(drill.optimizers if drill else (), number)} stepped although an overflow "
                f"had made its gradients inf: {changed[0]}{more} changed{wrong}; let "
                "scaler.step(optimizer) decide, and heed found_inf in an optimizer or a scaler of "
                "your own",
                {"changed": list(changed), "next_loss_finite": each.next_loss_finite},
            )
            return
        if each.hidden and not _first_differing(case):
            yield Word(
                "an infinite loss went backward, and no optimizer saw it: its gradients were made "
                "finite before the GradScaler looked (nan_to_num, clamp), so a step was taken on "
                "them and the loss scale does not back off; leave inf gradients to the scaler",
                {"scale": list(each.scale)},
                severity="warning",
            )
            return


def scale_stuck(case: Case) -> Iterator[Word]:
    use = case.seen.amp.scaler
    for number in range(len(use.optimizers)):
        steps = [step for step in use.steps if step.optimizer == number]
        which = _which(use.optimizers, number)
        if _at_the_floor(steps):
            yield Word(
                f"the loss scale is down at {steps[-1].scale:g}, and the steps of {which} are "
                f"skipped all the same ({_skips(steps)} of {len(steps)}): no scale helps, since "
                "gradients are inf or NaN for another reason; look for a division by zero, a sqrt "
                "or log at 0, or float16 values beyond 65504",
                {"scale": steps[-1].scale, "skipped": _skips(steps), "steps": len(steps)},
            )
            return
        later = _after_the_first_taken(steps)
        if _skips(later) > STRAY_SKIPS and _skips(later) > STRAY_SHARE * len(later):
            yield Word(
                f"the GradScaler skipped {_skips(later)} of {len(later)} steps of {which} after "
                f"it had found a scale ({steps[-1].scale:g} at the end): see that zero_grad() "
                "runs after a skipped step too, and that growth_interval is not a few steps",
                {"scale": steps[-1].scale, "skipped": _skips(later), "steps": len(later)},
            )
            return
    drill = case.seen.overflow
    # What stepped on the overflow may well be ruined, and AMP206 says so.
    if drill and any(not each.recovered and not each.changed for each in drill.overflows):
        yield Word(
            "after one overflow, every step that followed was skipped as well: inf gradients stay "
            "and are added to; call zero_grad() after a skipped step too, and update() always",
            {"drill": "overflow"},
        )


def scaler_bypassed(case: Case) -> Iterator[Word]:
    use, drill = case.seen.amp.scaler, case.seen.two_scales
    if drill is not None and drill.gradients:
        bypassed = _bypassed(case)
        if bypassed is not None:
            yield bypassed[1]
    elif use.scaled and not use.steps and use.optimizers:
        yield Word(
            f"a GradScaler scaled losses ({use.scaled} times), and its step() was never called: "
            f"{_which(use.optimizers, 0)} stepped on what it was given, overflows and all; call "
            "scaler.step(optimizer) in place of optimizer.step()",
            {"scaled": use.scaled},
        )


def _bypassed(case: Case) -> tuple[int, Word] | None:
    """The optimizer that sees gradients which the scaler does not account for, and how it shows."""
    drill, differing = case.seen.two_scales, _first_differing(case)
    if drill is None or not differing:
        return None
    number, first = differing[0].optimizer, differing[0]
    which, times = _which(drill.optimizers, number), drill.scales[0] / drill.scales[1]
    evidence = {
        "optimizer": _kind(drill.optimizers, number),
        "parameter": first.parameter,
        "ratio": first.ratio,
        "scales": list(drill.scales),
        "unscaled_backward_passes": drill.unscaled,
    }
    module = first.parameter.rpartition(".")[0] or None
    if all(_is_about(each.ratio, times) for each in differing):
        return number, Word(
            f"{which} steps on gradients that are still scaled: at {times:g} times the loss scale "
            f"that of {first.parameter} is {times:g} times as large; call scaler.step(optimizer) "
            "in place of optimizer.step(), for each optimizer",
            evidence,
            module=module,
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
        )
    return None


def _first_differing(case: Case) -> Sequence[GradientAtTwoScales]:
    """Gradients that depend on the loss scale, of the first optimizer that has any.

    What it did with them may well be why those of the others differ.
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


def _skips_with_a_move(case: Case) -> list[tuple[int, int]]:
    """Optimizer and step of the experiment, for skips in which its scheduler moved as ever."""
    use = case.seen.amp.scaler
    moves = Counter((number, step) for step, number in use.moves)
    taken = {(each.optimizer, each.step) for each in use.steps if not each.skipped}
    skipped = {(each.optimizer, each.step) for each in use.steps if each.skipped} - taken
    usual = {number: min(moves[each] for each in taken if each[0] == number) for number, _ in taken}
    return sorted(each for each in skipped if moves[each] >= usual.get(each[0], 0) > 0)


def _at_the_floor(steps: Sequence[ScalerStep]) -> bool:
    """Whether the last steps were skipped, all of them, and no smaller scale is to be tried."""
    tail = steps[-max(FLOOR_AFTER, len(steps) // 4) :]
    if len(tail) < FLOOR_AFTER or not all(step.skipped for step in tail):
        return False
    return tail[-1].scale < LEAST_SCALE or tail[-1].scale >= tail[0].scale


def _after_the_first_taken(steps: Sequence[ScalerStep]) -> Sequence[ScalerStep]:
    first = next((i for i, step in enumerate(steps) if not step.skipped), len(steps))
    return steps[first + 1 :]


def _skips(steps: Iterable[ScalerStep]) -> int:
    return sum(step.skipped for step in steps)


def _kind(kinds: Sequence[str], number: int) -> str:
    return kinds[number] if number < len(kinds) else "the optimizer"


def _which(kinds: Sequence[str], number: int) -> str:
    """``AdamW``, and which one where there are several."""
    kind = _kind(kinds, number)
    return f"{kind} (optimizer {number + 1} of {len(kinds)})" if len(kinds) > 1 else kind


RULES = (
    Rule("AMP202", scaler_with_bf16),
    Rule("AMP203", modified_before_unscale),
    Rule("AMP204", scaler_protocol),
    Rule("AMP205", scheduler_on_skipped_step),
    Rule("AMP206", stepped_on_overflow),
    Rule("AMP207", scale_stuck),
    Rule("AMP208", scaler_bypassed),
)
