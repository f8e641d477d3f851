"""Define which results may be compared, and which of two is newer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pytest_amp.judge.comparison import VERSIONS
from pytest_amp.settings.table import BY_NAME

Report = Mapping[str, Any]
# The settings that affect how long a step takes and where its loss ends. Thresholds do not.
MEASURING = ("steps", "warmup", "seed")
# These too, but they have no part in a key while they are at their defaults, so that results from
# before they existed stay comparable.
SCALING = ("init_scale", "growth_interval")
# The first parts of a key, in order; recipes follow, where they are not the usual ones.
PARTS = ("test", "device", "dtype", *MEASURING, "rank")


def key(report: Report) -> str:
    """Return what comparable results share, as text: test, device, dtype, settings and the like.

    Raises:
        LookupError, TypeError, AttributeError: this is not a report.
    """
    environment, settings = report["environment"] or {}, report["settings"]
    measuring = [settings[name]["value"] if name in settings else None for name in MEASURING]
    where = (report["nodeid"], environment.get("device"), environment.get("dtype"))
    return json.dumps([*where, *measuring, report.get("rank") or 0, *recipes(report)])


def recipes(report: Report) -> tuple[str, ...]:
    """Return the names of the recipes, unless they are the default ones for the report's dtype.

    Those have no part in a key, so that results from before there were recipes stay comparable. If
    the loss scale is not the default one, the candidate's name says so.
    """
    arms, environment = report.get("arms") or {}, report["environment"] or {}
    named = [(arms.get(name) or {}).get("recipe") for name in ("fp32", "amp")]
    usual = ["fp32", {"float16": "fp16", "bfloat16": "bf16"}.get(environment.get("dtype", ""))]
    scaling = _scaling(report["settings"])
    if None in named or (named == usual and not scaling):
        return ()
    reference, candidate = map(str, named)
    return reference, f"{candidate} ({', '.join(scaling)})" if scaling else candidate


def _scaling(settings: Mapping[str, Any]) -> list[str]:
    given = {name: settings[name]["value"] for name in SCALING if name in settings}
    return [f"{name}={value:g}" for name, value in given.items() if value != BY_NAME[name].default]


def versions(report: Report) -> str:
    """Return a digest of versions and flags, which ``--amp-compare-exact`` requires to be equal."""
    environment = report["environment"] or {}
    flags = sorted((environment.get("flags") or {}).items())
    parts = [*(environment.get(name) for name in VERSIONS), flags]
    return hashlib.sha1(repr(parts).encode(errors="replace")).hexdigest()[:16]


def seconds(started: str) -> float:
    """Convert an ISO 8601 time to seconds since 1970; a time without a zone is in UTC.

    Raises:
        ValueError: this is not a time, or is one that pandas can't hold in nanoseconds.
    """
    time = datetime.fromisoformat(started)
    if not 1970 < time.year < 2262:
        raise ValueError(f"it is of the year {time.year}")
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
