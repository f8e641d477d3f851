"""AMP206 and AMP211: what the overflow drill gets into, and whether the step survives it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_amp.judge.case import Case
from pytest_amp.rules.accumulation import differing_accumulation
from pytest_amp.rules.base import Word, rule
from pytest_amp.rules.scale_drill import first_differing, optimizer_name, past_the_scaler


@rule("AMP206")
def stepped_on_overflow(case: Case) -> Iterator[Word]:
    """Look for parameters or optimizer state that the drill's overflow got into.

    An optimizer that bypasses the scaler is left to AMP208.
    """
    drill, bypassed = case.seen.overflow, past_the_scaler(case)
    for each in drill.overflows if drill else ():
        for number, changed in each.changed.items():
            if bypassed is not None and number == bypassed[0]:
                continue  # AMP208 says why
            wrong = "" if each.next_loss_finite else "; the next loss was not finite"
            optimizer = optimizer_name(drill.optimizers if drill else (), number)
            yield Word(
                f"{optimizer} stepped although an overflow "
                f"had made its gradients inf: {changed[0]}{_and_more(changed)} changed{wrong}; let "
                "scaler.step(optimizer) decide, and respect found_inf in an optimizer or a scaler "
                "of your own",
                {"changed": list(changed), "next_loss_finite": each.next_loss_finite},
                location=case.seen.amp.stepped_at(number),
            )
            return
        if each.ruined_later and not each.changed:
            yield Word(
                f"one step after an overflow {each.ruined_later[0]}{_and_more(each.ruined_later)} "
                "is not finite, though the overflow itself was skipped: something that the step "
                "keeps (an average of gradients or of their norm, a buffer) took the inf in; "
                "leave it as it was where gradients are not finite",
                {"ruined": list(each.ruined_later)},
                location=each.ruined_at or case.seen.amp.stepped_at(0),
            )
            return
        if each.ruined and not each.changed:
            yield Word(
                f"after an overflow {each.ruined[0]}{_and_more(each.ruined)} is not finite, though "
                "no optimizer stepped: the step itself wrote inf or NaN into it (a perturbation "
                "along the gradient, a projection, an average); see that gradients are finite "
                "before anything is made of them",
                {"ruined": list(each.ruined)},
                location=each.ruined_at,
            )
            return
        if each.hidden and not (first_differing(case) or any(differing_accumulation(case))):
            yield Word(
                "an infinite loss went backward, and no optimizer saw it: its gradients were made "
                "finite before the GradScaler looked (nan_to_num, clamp), so a step was taken on "
                "them and the loss scale does not back off; leave inf gradients to the scaler",
                {"scale": list(each.scale)},
                severity="warning",
                location=each.cleared_at or each.backward_at,
            )
            return


@rule("AMP211")
def dies_on_overflow(case: Case) -> Iterator[Word]:
    """Look for a step that raises when its gradients overflow."""
    drill = case.seen.overflow
    for each in drill.overflows if drill else ():
        if each.died:
            yield Word(
                f"an overflow of the gradients ends the training ({each.died}); a GradScaler "
                "provokes overflows while it looks for its scale, and skips those steps: let it "
                "(as with error_if_nonfinite=False), and raise after many skipped steps only",
                {"raised": each.died, "scale": each.scale[0]},
                location=each.died_at,
            )


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if names[1:] else ""
