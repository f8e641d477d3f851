"""What two results must have in common to be compared, and which of them is the newer one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pytest_amp.judge.comparison import VERSIONS

Report = Mapping[str, Any]
# What decides how long a step takes and where its loss ends; thresholds do not.
MEASURING = ("steps", "warmup", "seed")
# What a key is made of, in its order.
PARTS = ("test", "device", "dtype", *MEASURING, "rank")


def key(report: Report) -> str:
    """Test, device, dtype, settings and rank, as text.

    Raises LookupError, TypeError or AttributeError for what is no report.
    """
    environment, settings = report["environment"] or {}, report["settings"]
    measuring = [settings[name]["value"] if name in settings else None for name in MEASURING]
    where = (report["nodeid"], environment.get("device"), environment.get("dtype"))
    return json.dumps([*where, *measuring, report.get("rank") or 0])


def versions(report: Report) -> str:
    """Equal where versions and flags are, which ``--amp-compare-exact`` asks for."""
    environment = report["environment"] or {}
    flags = sorted((environment.get("flags") or {}).items())
    parts = [*(environment.get(name) for name in VERSIONS), flags]
    return hashlib.sha1(repr(parts).encode(errors="replace")).hexdigest()[:16]


def seconds(started: str) -> float:
    """When that was, since 1970; a time without a zone is UTC.

    Raises ValueError for what is no time, or one that pandas has no nanoseconds for.
    """
    time = datetime.fromisoformat(started)
    if not 1970 < time.year < 2262:
        raise ValueError(f"it is of the year {time.year}")
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
