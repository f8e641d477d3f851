"""Tell from what was seen of a step which line of the user's a finding is about."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_amp.observations import Operators


def where_it_ran(operators: Operators, dtypes: Sequence[str]) -> str | None:
    """Return the line of the region in which most work ran in these dtypes, or else of the work."""
    regions = [each for each in operators.regions if each.dtype in dtypes and each.location]
    if regions:
        return max(regions, key=lambda region: (region.flops, region.bytes)).location
    rows = [row for row in operators.rows if row.dtype in dtypes and row.location]
    return max(rows, key=lambda row: (row.flops, row.bytes)).location if rows else None
