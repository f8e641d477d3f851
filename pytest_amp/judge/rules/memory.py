"""AMP5xx: where the amp arm's memory goes."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_amp import units
from pytest_amp.judge.rules.base import Case, Rule, Word

# A cast this large beside the peak is what the peak is made of.
DOMINANT = 0.3
LEAST_BYTES = 2**20


def cast_materialised(case: Case) -> Iterator[Word]:
    peak, operators = case.seen.amp.peak_bytes, case.seen.amp.operators
    casts = [row for row in (operators.rows if operators else ()) if row.is_cast]
    if not casts or not peak:
        return
    largest = max(casts, key=lambda row: row.largest)
    share = largest.largest / peak
    if share < DOMINANT or largest.largest < LEAST_BYTES or largest.phase == "update":
        return
    stretched = (
        f" of a tensor that is expanded {largest.stretch} times, and becomes that large"
        if largest.stretch > 1
        else ""
    )
    place = f" in {largest.module}" if largest.module else ""
    remedy = "cast it before it is expanded" if stretched else "make it in that dtype at once"
    yield Word(
        f"one cast{stretched}{place} takes {units.size(largest.largest)}, {units.share(share)} of "
        f"the amp arm's peak: {remedy}, or keep it out of the autocast region",
        {"bytes": largest.largest, "share": share, "stretch": largest.stretch},
        module=largest.module,
        location=largest.location,
    )


RULES = (Rule("AMP503", cast_materialised),)
