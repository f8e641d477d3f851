"""Write a run's marks as a code quality report, as GitLab reads them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pytest_amp import units
from pytest_amp.render.annotations import Mark

_SEVERITIES = {"error": "major", "warning": "minor"}


def document(marks: Iterable[Mark]) -> list[dict[str, Any]]:
    """Return the report as plain JSON.

    GitLab compares a merge request's fingerprints with those of its target. So they depend neither
    on the line nor on measured figures, and each is there once.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    issues = []
    for mark in marks:
        seen[mark.key] += 1
        key = "\0".join((*mark.key, str(seen[mark.key])))
        issues.append(
            {
                "description": units.one_line(f"{mark.title}: {mark.message}"),
                "check_name": mark.check,
                "fingerprint": hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest(),
                "severity": _SEVERITIES[mark.severity],
                "location": {"path": mark.place.file, "lines": {"begin": mark.place.line}},
            }
        )
    return issues


def encoded(marks: Iterable[Mark]) -> bytes:
    """Return the report as the bytes of its file."""
    return (json.dumps(document(marks), indent=1) + "\n").encode("ascii")
