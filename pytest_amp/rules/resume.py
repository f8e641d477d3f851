"""AMP212: whether a run goes on from the user's checkpoint as if it had not ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import LeftOut, Resume
from pytest_amp.rules.base import Word, rule

# Losses and states of equal runs are equal to the last bit on a CPU, and to rounding elsewhere.
DIFFERS_FROM = 1e-5
TIMES_NOISE = 10
# What is trained for its own sake, such as an average of weights, though no loss depends on it.
_KEPT = ("model", "other")
_KINDS = {"other": "object"}


@rule("AMP212")
def resume_differs(case: Case) -> Iterator[Word]:
    """Look for state that the checkpoint leaves out, and that changes what follows a resume.

    It is a warning where the steps that were looked at do not show it, as of a schedule that begins
    anew and of a counter in no state_dict().
    """
    drill, held = case.seen.resume, case.seen.amp.checkpoint or ()
    for each in drill.left_out if drill else ():
        assert drill is not None
        step = _first_to_differ(each, drill)
        moved = each.scales is not None and each.scales[0] != each.scales[1]
        lost = each.state > max(DIFFERS_FROM, TIMES_NOISE * drill.state_noise)
        if step is None and not moved and not lost:
            continue
        shown = step is not None or moved or (each.kind in _KEPT and not each.in_checkpoint)
        severity: Literal["error", "warning"] = "error" if shown else "warning"
        yield Word(
            f"{_what_follows(each, drill, step)}: {_cause(each, held)}",
            {
                "left_out": each.name,
                "kind": each.kind,
                "after_steps": drill.after,
                "first_step": None if step is None else drill.after + step + 1,
                "losses": None if step is None else list(each.losses[step]),
                "scales": None if each.scales is None else list(each.scales),
                "state": each.state if math.isfinite(each.state) else None,
            },
            severity=severity,
            location=case.seen.amp.checkpoint_at,
        )


def _first_to_differ(each: LeftOut, drill: Resume) -> int | None:
    least = max(DIFFERS_FROM, TIMES_NOISE * drill.noise)
    return next((index for index, off in enumerate(each.differences) if off > least), None)


def _what_follows(each: LeftOut, drill: Resume, step: int | None) -> str:
    said = []
    if each.scales is not None and each.scales[0] != each.scales[1]:
        before, after = each.scales
        said.append(f"the loss scale was {before:g} and is {after:g} after a resume")
    if step is not None:
        whole, resumed = each.losses[step]
        said.append(
            f"resumed after step {drill.after}, the loss of step {drill.after + step + 1} is "
            f"{units.number(resumed)} and not {units.number(whole)} "
            f"(off by {units.share(each.differences[step])})"
        )
    if not said:
        said.append(
            f"resumed after step {drill.after}, {_named(each)} is not what it would have been, "
            f"though the losses of the next {len(each.differences)} steps are"
        )
    return "; ".join(said)


def _cause(each: LeftOut, held: Sequence[str]) -> str:
    name = _named(each)
    if each.in_checkpoint:
        return (
            f"the checkpoint holds {name}, but its state_dict() or its load_state_dict() leaves "
            "something out (a buffer with persistent=False, an attribute); save that too"
        )
    key = "" if each.kind in (*held, "other") else f" ({each.kind}=...)"
    return (
        f"the checkpoint leaves out {name}, and with it everything is as it would have been; save "
        f"its state_dict(), load it, and name it here{key}"
    )


def _named(each: LeftOut) -> str:
    return (
        "the GradScaler"
        if each.kind == "scaler"
        else f"the {_KINDS.get(each.kind, each.kind)} {each.name}"
    )
