"""AMP2xx: whether the GradScaler is used as it has to be, from what it did and from two drills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import ScalerStep
from pytest_amp.rules.base import Raised, Rule, Word
from pytest_amp.rules.scale_drill import first_differing, named, past_the_scaler

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
        "update() came before any scaler.step(): it belongs at the end of each step, once, behind "
        "the scaler.step(optimizer) of every optimizer; an optimizer.step() does not count"
    ),
    "Attempted": (
        "no loss has been scaled: call scaler.scale(loss).backward(), not loss.backward()"
    ),
}


# A model in float16 ends in this one: its parameters are at fault, not an order of calls.
HALF_PARAMETERS = {
    "Attempting to unscale FP16 gradients": (
        "the trained parameters are kept in float16 (.half()), and so are their gradients, which "
        "a GradScaler refuses to divide: keep parameters in float32 and let autocast cast them"
    ),
}


def protocol_violated(raised: Raised) -> Iterator[Word]:
    return _meant(raised, PROTOCOL)


def half_parameters_refused(raised: Raised) -> Iterator[Word]:
    return _meant(raised, HALF_PARAMETERS)


def _meant(raised: Raised, meanings: Mapping[str, str]) -> Iterator[Word]:
    """What a GradScaler's exception means, told from its message; nothing of another one."""
    for beginning, meaning in meanings.items():
        if raised.message.startswith(beginning):
            yield Word(meaning, {"raised": raised.message}, location=raised.location)


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


def scaler_protocol(case: Case) -> Iterator[Word]:
    """What the scaler raised after an overflow; what it raises before ends the experiment."""
    drill = case.seen.overflow
    for each in drill.overflows if drill else ():
        for meant in _meant(Raised(each.raised), PROTOCOL | HALF_PARAMETERS) if each.raised else ():
            yield replace(
                meant, message=f"after an overflow, torch raised {each.raised!r}: {meant.message}"
            )


def scheduler_on_skipped_step(case: Case) -> Iterator[Word]:
    kinds, skipped = case.seen.amp.scaler.optimizers, _skips_with_a_move(case)
    if skipped:
        number, step = skipped[0]
        where = f"in step {step + 1}" + (f" and {len(skipped) - 1} more" if skipped[1:] else "")
        yield _moved_on(named(kinds, number), where, {"step": step + 1, "steps": len(skipped)})
        return
    drill = case.seen.overflow
    for each in drill.overflows if drill else ():
        usual, moves = Counter(drill.moves if drill else ()), Counter(each.moves)
        for number in each.skipped:
            if usual[number] and moves[number] >= usual[number]:
                which = named(kinds, number)
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
    drill, bypassed = case.seen.overflow, past_the_scaler(case)
    for each in drill.overflows if drill else ():
        for number, changed in each.changed.items():
            if bypassed is not None and number == bypassed[0]:
                continue  # AMP208 says why
            wrong = "" if each.next_loss_finite else "; the next loss was not finite"
            yield Word(
                f"{named(drill.optimizers if drill else (), number)} stepped although an overflow "
                f"had made its gradients inf: {changed[0]}{_and_more(changed)} changed{wrong}; let "
                "scaler.step(optimizer) decide, and heed found_inf in an optimizer or a scaler of "
                "your own",
                {"changed": list(changed), "next_loss_finite": each.next_loss_finite},
            )
            return
        if each.ruined_later and not each.changed:
            yield Word(
                f"one step after an overflow {each.ruined_later[0]}{_and_more(each.ruined_later)} "
                "is not finite, though the overflow itself was skipped: something that the step "
                "keeps (an average of gradients or of their norm, a buffer) took the inf in; "
                "leave it as it was where gradients are not finite",
                {"ruined": list(each.ruined_later)},
            )
            return
        if each.ruined and not each.changed:
            yield Word(
                f"after an overflow {each.ruined[0]}{_and_more(each.ruined)} is not finite, though "
                "no optimizer stepped: the step itself wrote inf or NaN into it (a perturbation "
                "along the gradient, a projection, an average); see that gradients are finite "
                "before anything is made of them",
                {"ruined": list(each.ruined)},
            )
            return
        if each.hidden and not first_differing(case):
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
        which = named(use.optimizers, number)
        if _at_the_floor(steps) and steps[-1].scale >= LEAST_SCALE:
            yield Word(
                f"the steps of {which} are skipped ({_skips(steps)} of {len(steps)}) and the loss "
                f"scale stays at {steps[-1].scale:g} all the same: update() is not called on "
                "this GradScaler, a new one is made in each step, or it has a floor of its own",
                {"scale": steps[-1].scale, "skipped": _skips(steps), "steps": len(steps)},
            )
            return
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
    # What the overflow got into is ruined, and AMP206 says so.
    stuck = [each for each in drill.overflows if not each.recovered] if drill else []
    if any(not (each.changed or each.ruined or each.ruined_later) for each in stuck):
        yield Word(
            "after one overflow, every step that followed was skipped as well: inf gradients stay "
            "and are added to; call zero_grad() after a skipped step too, and update() always",
            {"drill": "overflow"},
        )

    elif drill and any(each.left_out for each in drill.overflows):
        yield Word(
            "the step leaves an overflow out by itself, and the GradScaler is not told: the scale "
            "stays where it is, so that the next step may overflow as well; call "
            "scaler.step(optimizer) and update(), which skip it and lower the scale",
            {"drill": "overflow"},
            severity="warning",
        )
    if use.made_in_steps > 1 and use.made_in_steps >= len({step.step for step in use.steps}):
        yield Word(
            f"a new GradScaler was made {use.made_in_steps} times while steps ran: none lives long "
            "enough to lower its scale after an overflow, or to raise it; make one before training",
            {"made": use.made_in_steps},
            severity="warning",
        )


def _skips_with_a_move(case: Case) -> list[tuple[int, int]]:
    """Optimizer and step of the experiment, for skips in which its scheduler moved as ever."""
    use = case.seen.amp.scaler
    moves, first = Counter((number, step) for step, number in use.moves), use.first_moves
    # before its first move a scheduler may not have been there
    steps = [each for each in use.steps if each.step >= first.get(each.optimizer, 0)]
    taken = {(each.optimizer, each.step) for each in steps if not each.skipped}
    skipped = {(each.optimizer, each.step) for each in steps if each.skipped} - taken
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


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if names[1:] else ""


def _skips(steps: Iterable[ScalerStep]) -> int:
    return sum(step.skipped for step in steps)


# A loss that is larger by so much when backward is called than when the step returns it was
# scaled by hand.
BY_HAND = 2.0


def fp16_without_scaler(case: Case) -> Iterator[Word]:
    operators = case.seen.amp.operators
    if operators is None or case.seen.amp.scaler.live:
        return
    backward = [
        row
        for row in operators.rows
        if row.phase == "backward" and row.dtype == "float16" and (row.flops or not operators.flops)
    ]
    by_hand = operators.backward_scale is not None and operators.backward_scale >= BY_HAND
    if not backward or by_hand:
        return
    yield Word(
        "the backward pass runs in float16, and the loss is not scaled: gradients below 6e-8 are "
        "lost; use arm.scaler (scale, step, update), or bfloat16",
        {"flops": sum(row.flops for row in backward), "scale": operators.backward_scale},
        module=backward[0].module,
    )


def scale_changed_mid_accumulation(case: Case) -> Iterator[Word]:
    times = case.seen.amp.scaler.updates_in_midst
    if times:
        yield Word(
            f"scaler.update() came {units.plural(times, 'time')} between backward passes that add "
            "to the same gradients: what was added before and after may be scaled differently; "
            "call update() once, after the last optimizer has stepped on all of them",
            {"updates": times},
        )
    early = case.seen.amp.scaler.updates_before_step
    if early:
        yield Word(
            f"scaler.update() came {units.plural(early, 'time')} between a backward pass and the "
            "scaler.step() on its gradients, which divides them by the new scale where they were "
            "multiplied by the old one; call update() once, after the last optimizer has stepped",
            {"updates": early},
        )


RULES = (
    Rule("AMP201", fp16_without_scaler),
    Rule("AMP202", scaler_with_bf16),
    Rule("AMP204", scaler_protocol),
    Rule("AMP204", protocol_violated, Raised),
    Rule("AMP102", half_parameters_refused, Raised),
    Rule("AMP205", scheduler_on_skipped_step),
    Rule("AMP206", stepped_on_overflow),
    Rule("AMP207", scale_stuck),
    Rule("AMP209", scale_changed_mid_accumulation),
)
