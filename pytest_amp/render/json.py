"""Write the JSON report of ``--amp-json``, and load the JSON Schema that describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final, get_args

from pytest_amp import files
from pytest_amp.results.gaps import Gap, GapKind
from pytest_amp.results.report import AmpReport

SCHEMA: Final = 1
RUN_KEYS: Final = ("id", "commit", "branch", "dirty", "started", "command")


def document(
    reports: Sequence[AmpReport],
    run: Mapping[str, Any],
    created: str,
    version: str,
    gaps: Sequence[Gap] = (),
) -> dict[str, Any]:
    """Return the whole report as plain JSON.

    Args:
        reports: the reports of the tests.
        run: what is known of `RUN_KEYS` about the run; the others become null.
        created: when the report is written, as ISO 8601.
        version: pytest-amp's version.
        gaps: what the run did not answer.
    """
    return {
        "schema": SCHEMA,
        "created": created,
        "pytest_amp": version,
        "run": {**dict.fromkeys(RUN_KEYS), **run},
        **{kind: [gap.text for gap in gaps if gap.kind == kind] for kind in _kinds(gaps)},
        "tests": [report.to_dict() for report in reports],
    }


def _kinds(gaps: Sequence[Gap]) -> list[GapKind]:
    return [kind for kind in get_args(GapKind) if any(gap.kind == kind for gap in gaps)]


def write(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write a document so that a reader finds either all of it or what was there before.

    Missing directories are made, and a link is followed.

    Raises:
        ValueError: a number is not finite.
        TypeError: JSON can't express a value.
        OSError: the file can't be written.
    """
    text = json.dumps(document, allow_nan=False, ensure_ascii=False) + "\n"
    # A lone surrogate (an undecodable byte of a file name) has no UTF-8, but \udcXX is valid JSON.
    data = text.encode("utf-8", errors="backslashreplace")
    files.write(path, data)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `document`, which ships with the package."""
    text = resources.files("pytest_amp.render").joinpath(f"schema-{SCHEMA}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
