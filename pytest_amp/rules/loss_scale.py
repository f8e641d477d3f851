"""AMP201 and AMP209: a loss scale that is missing, or that changes at the wrong time."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_amp import units
from pytest_amp.rules.base import Case, Rule, Word

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
    Rule("AMP209", scale_changed_mid_accumulation),
)
