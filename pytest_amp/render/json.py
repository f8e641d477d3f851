"""The JSON report of ``--amp-json``, schema 1, and the JSON Schema that describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

from pytest_amp import files
from pytest_amp.results.report import AmpReport

SCHEMA: Final = 1
RUN_KEYS: Final = ("id", "commit", "branch", "dirty", "started", "command")


def document(
    reports: Sequence[AmpReport],
    run: Mapping[str, Any],
    created: str,
    version: str,
    unasked: Sequence[str] = (),
) -> dict[str, Any]:
    """The whole report as plain JSON.

    `run` describes the session: of `RUN_KEYS` whatever is known, the rest becomes null.
    `created` is an ISO-8601 time, `version` pytest-amp's own. `unasked`: what was to be gated and
    was asked of no test, a sentence each.
    """
    return {
        "schema": SCHEMA,
        "created": created,
        "pytest_amp": version,
        "run": {**dict.fromkeys(RUN_KEYS), **run},
        **({"unasked": list(unasked)} if unasked else {}),
        "tests": [report.to_dict() for report in reports],
    }


def write(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write `document` to `path` so that a reader finds either all of it or what was there before.

    Missing directories are made; a link is followed. Raises ValueError for a number that is not
    finite, TypeError for what JSON has no word for, OSError where the disk says no.
    """
    text = json.dumps(document, allow_nan=False, ensure_ascii=False) + "\n"
    # A lone surrogate (an undecodable byte of a file name) has no UTF-8; its \udcXX is JSON.
    data = text.encode("utf-8", errors="backslashreplace")
    files.write(path, data)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `document`, as it ships with the package."""
    text = resources.files("pytest_amp.render").joinpath(f"schema-{SCHEMA}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
