"""AMP2xx: whether the GradScaler is used correctly, from what it did and from drills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pytest_amp import units
from pytest_amp.judge import skips
from pytest_amp.judge.case import Case
from pytest_amp.rules.base import Raised, Word, rule
from pytest_amp.rules.scale_drill import optimizer_name
from pytest_amp.rules.scale_stuck import made_anew, scale_that_is_stuck

# The beginnings of two messages whose cause is another line than the call that raises.
NOTHING_SCALED = "Attempted"
NOTHING_TO_CHECK = "No inf checks were recorded for this optimizer"
# By the beginning of a message that torch's GradScaler raises: what it means, and the fix.
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
    NOTHING_TO_CHECK: (
        "not one of the optimizer's parameters has a gradient: see that the scaled loss reaches "
        "them, and that zero_grad() does not come between backward and step"
    ),
    "No inf checks were recorded prior to update": (
        "update() came before any scaler.step(): it belongs at the end of each step, once, after "
        "the scaler.step(optimizer) of every optimizer; an optimizer.step() does not count"
    ),
    NOTHING_SCALED: (
        "no loss has been scaled: call scaler.scale(loss).backward(), not loss.backward()"
    ),
}
# A model in float16 raises this. Its parameters are at fault, not the order of calls.
HALF_PARAMETERS = {
    "Attempting to unscale FP16 gradients": (
        "the trained parameters are kept in float16 (.half()), and so are their gradients, which "
        "a GradScaler refuses to divide: keep parameters in float32 and let autocast cast them"
    ),
}


@rule("AMP204", Raised)
def protocol_violated(raised: Raised) -> Iterator[Word]:
    """Look for an exception with which a GradScaler refuses the order of calls."""
    return _meant(raised, PROTOCOL)


@rule("AMP102", Raised)
def half_parameters_refused(raised: Raised) -> Iterator[Word]:
    """Look for a GradScaler's refusal to unscale gradients in float16.

    Such gradients come from parameters in float16.
    """
    return _meant(raised, HALF_PARAMETERS)


def _meant(raised: Raised, meanings: Mapping[str, str]) -> Iterator[Word]:
    """Explain a GradScaler's exception by the beginning of its message, if it is a known one."""
    for beginning, meaning in meanings.items():
        if raised.message.startswith(beginning):
            yield Word(meaning, {"raised": raised.message}, location=raised.location)


@rule("AMP202")
def scaler_with_bf16(case: Case) -> Iterator[Word]:
    """Look for a GradScaler at work in a step whose reduced work is all in bfloat16."""
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
            location=case.seen.amp.scaler.made_at or case.seen.amp.scaler.scaled_at,
        )


@rule("AMP204")
def scaler_protocol(case: Case) -> Iterator[Word]:
    """Look for what the scaler raised after the drill's overflow.

    What it raises before that ends the experiment, and is explained there.
    """
    drill = case.seen.overflow
    for each in drill.overflows if drill else ():
        refused = Raised(each.raised, each.raised_at) if each.raised else None
        for meant in _meant(refused, PROTOCOL | HALF_PARAMETERS) if refused else ():
            yield replace(
                meant, message=f"after an overflow, torch raised {each.raised!r}: {meant.message}"
            )


@rule("AMP205")
def scheduler_on_skipped_step(case: Case) -> Iterator[Word]:
    """Look for learning rate schedulers that moved on a skipped step as on any other.

    The parity run is searched first and then the overflow drill, in case nothing was skipped
    before.
    """
    kinds, skipped = case.seen.amp.scaler.optimizers, _skips_with_a_move(case)
    if skipped:
        number, step = skipped[0]
        where = f"in step {step + 1}" + (f" and {len(skipped) - 1} more" if skipped[1:] else "")
        yield _moved_on(
            optimizer_name(kinds, number),
            where,
            {"step": step + 1, "steps": len(skipped)},
            case.seen.amp.scaler.moved_at.get(number),
        )
        return
    drill = case.seen.overflow
    for each in drill.overflows if drill else ():
        usual, moves = Counter(drill.moves if drill else ()), Counter(each.moves)
        for number in each.skipped:
            if usual[number] and moves[number] >= usual[number]:
                which = optimizer_name(kinds, number)
                line = case.seen.amp.scaler.moved_at.get(number)
                yield _moved_on(which, "in the overflow drill", {"moves": moves[number]}, line)
                return


def _moved_on(which: str, where: str, evidence: Mapping[str, object], line: str | None) -> Word:
    return Word(
        f"the learning-rate scheduler of {which} moved on a step that the GradScaler skipped "
        f"({where}): warm-up and decay run ahead of the training; call scheduler.step() only if "
        "the scale did not go down (before = scaler.get_scale(); scaler.update(); "
        "if scaler.get_scale() >= before)",
        evidence,
        location=line,
    )


@rule("AMP207")
def scale_stuck(case: Case) -> Iterator[Word]:
    """Look for a loss scale that does not recover, in the parity run and in the overflow drill."""
    use = case.seen.amp.scaler
    found = skips.stuck(use)
    if found is not None:
        yield scale_that_is_stuck(case, found)
        return
    drill = case.seen.overflow
    # If the overflow got into something, AMP206 says so.
    stuck = [each for each in drill.overflows if not each.recovered] if drill else []
    if any(not (each.changed or each.ruined or each.ruined_later) for each in stuck):
        yield Word(
            "after one overflow, every step that followed was skipped as well: inf gradients stay "
            "and are added to; call zero_grad() after a skipped step too, and update() always",
            {"drill": "overflow"},
            location=stuck[0].backward_at,
        )

    elif drill and any(each.left_out for each in drill.overflows):
        yield Word(
            "the step leaves an overflow out by itself, and the GradScaler is not told: the scale "
            "stays where it is, so that the next step may overflow as well; call "
            "scaler.step(optimizer) and update(), which skip it and lower the scale",
            {"drill": "overflow"},
            severity="warning",
            location=next(each.backward_at for each in drill.overflows if each.left_out),
        )
    if made_anew(use):
        yield Word(
            f"a new GradScaler was made {use.made_in_steps} times while steps ran: none lives long "
            "enough to lower its scale after an overflow, or to raise it; make one before training",
            {"made": use.made_in_steps},
            severity="warning",
            location=use.made_at,
        )


def _skips_with_a_move(case: Case) -> list[tuple[int, int]]:
    """Return the optimizer and the step of each skip in which the optimizer's scheduler moved.

    It must have moved as often as on the steps that were taken.
    """
    use = case.seen.amp.scaler
    moves, first = Counter((number, step) for step, number in use.moves), use.first_moves
    # before its first move a scheduler may not have existed
    steps = [each for each in use.steps if each.step >= first.get(each.optimizer, 0)]
    taken = {(each.optimizer, each.step) for each in steps if not each.skipped}
    skipped = {(each.optimizer, each.step) for each in steps if each.skipped} - taken
    usual = {number: min(moves[each] for each in taken if each[0] == number) for number, _ in taken}
    return sorted(each for each in skipped if moves[each] >= usual.get(each[0], 0) > 0)


# A loss that is this many times larger when backward is called on it than when the step returns it
# was scaled by hand.
BY_HAND = 2.0


@rule("AMP201")
def fp16_without_scaler(case: Case) -> Iterator[Word]:
    """Look for a backward pass in float16 whose loss was scaled neither by a scaler nor by hand."""
    operators = case.seen.amp.operators
    unscalable = case.seen.recipes.amp.parameter_dtype != "float32"  # no scaler takes its gradients
    if operators is None or case.seen.amp.scaler.live or unscalable:
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
        location=operators.backward_at,
    )


@rule("AMP209")
def scale_changed_mid_accumulation(case: Case) -> Iterator[Word]:
    """Look for updates of the scale while gradients were waiting for their optimizer's step."""
    times = case.seen.amp.scaler.updates_in_midst
    if times:
        yield Word(
            f"scaler.update() came {units.plural(times, 'time')} between backward passes that add "
            "to the same gradients: what was added before and after may be scaled differently; "
            "call update() once, after the last optimizer has stepped on all of them",
            {"updates": times},
            location=case.seen.amp.scaler.updated_at,
        )
    early = case.seen.amp.scaler.updates_before_step
    if early:
        yield Word(
            f"scaler.update() came {units.plural(early, 'time')} between a backward pass and the "
            "scaler.step() on its gradients, which divides them by the new scale where they were "
            "multiplied by the old one; call update() once, after the last optimizer has stepped",
            {"updates": early},
            location=case.seen.amp.scaler.updated_at,
        )
