"""The histories that a page draws: of each test, its stored results in their order."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_amp.record.frame import history
from pytest_amp.report.plots import Point

_MOST = 200


def histories(storage: Path) -> Mapping[str, Sequence[Point]]:
    """By test, device and dtype, as `report.html.history_key` has them; the newest 200 of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page is not the place to tell of broken files
        frame = history(storage)
    found: defaultdict[str, list[Point]] = defaultdict(list)
    columns = (
        "nodeid", "device", "dtype", "run", "started", "torch", "speedup", "amp_peak_bytes",
        "amp_loss", "verdict",
    )  # fmt: skip
    for row in frame[list(columns)].itertuples(index=False):
        key = "\n".join(map(_text, (row.nodeid, row.device, row.dtype)))
        found[key].append(
            Point(
                run=_text(row.run),
                started=row.started.isoformat(),
                torch=_text(row.torch),
                speedup=_number(row.speedup),
                amp_peak_bytes=_number(row.amp_peak_bytes),
                amp_loss=_number(row.amp_loss),
                passed=row.verdict == "pass",
            )
        )
    return {key: points[-_MOST:] for key, points in found.items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return None if value != value else float(value)
