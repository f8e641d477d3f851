"""Keep what was accepted in a file that is reviewed and committed, beside the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pytest_amp import files
from pytest_amp.judge.acknowledge import figures, problem
from pytest_amp.results.acknowledged import Accepted, Acknowledged
from pytest_amp.results.report import AmpReport
from pytest_amp.results.typed import typed
from pytest_amp.storage.key import key, seconds

FILE = "amp-acknowledged.json"
# A review takes days, and meanwhile the main branch goes on to save baselines without the change.
LASTS = timedelta(days=14)


def load(path: Path) -> tuple[Acknowledged, ...]:
    """Return what a file says was accepted; nothing if there is no such file.

    Raises:
        ValueError: the file can't be read, or says something else; the message names it.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read ({error})") from None
    try:
        found: tuple[Acknowledged, ...] = typed(tuple[Acknowledged, ...], json.loads(text))
        for number, each in enumerate(found):
            seconds(each.until)
            if why := problem(each):
                raise ValueError(f"[{number}]: {why}")
    except (TypeError, ValueError, RecursionError) as error:
        why = f"{path} is not a list of what was accepted: {error}"
        raise ValueError(f"{why}; `pytest-amp compare --acknowledge` writes it") from None
    return found


def add(path: Path, entries: Iterable[Acknowledged]) -> None:
    """Add to the file; a newer word on the same figure of the same test replaces an older one.

    Raises:
        ValueError: the file can't be read, or says something else.
        OSError: the file can't be written.
    """
    kept = {(each.metric, each.of): each for each in (*load(path), *entries)}
    written = sorted(map(asdict, kept.values()), key=lambda each: (each["test"], each["metric"]))
    files.write(path, (json.dumps(written, indent=1) + "\n").encode("ascii"))


def entry(
    report: AmpReport, stored: AmpReport, metric: Accepted, now: str, reason: str
) -> Acknowledged | None:
    """Return what accepts a result's figure; None if it has none that could be accepted."""
    found = figures(report, stored, metric)
    if found is None:
        return None
    return Acknowledged(report.nodeid, metric, _of(report), found, _until(now), reason)


def entry_for_test(
    nodeid: str, what: Literal["missing", "new"], now: str, reason: str
) -> Acknowledged:
    """Return what accepts that a test is gone, or has no baseline yet."""
    return Acknowledged(nodeid, what, (nodeid,), {}, _until(now), reason)


def _until(now: str) -> str:
    return (datetime.fromisoformat(now) + LASTS).isoformat(timespec="seconds")


def applying(
    accepted: Sequence[Acknowledged], report: AmpReport, baseline_started: str
) -> Mapping[str, Acknowledged]:
    """Return, by metric, what was accepted of a test, unless its baseline is newer than that."""
    if not accepted:
        return {}
    own = _of(report)
    return {
        each.metric: each
        for each in accepted
        if each.of == own and seconds(each.until) >= seconds(baseline_started)
    }


def may_be(
    what: Literal["missing", "new"], accepted: Sequence[Acknowledged], nodeid: str, measured: str
) -> Acknowledged | None:
    """Return what accepts that a test, which was measured then, is gone or new; None if nothing."""
    for each in accepted:
        if (each.metric, each.test) == (what, nodeid) and seconds(each.until) >= seconds(measured):
            return each
    return None


def _of(report: AmpReport) -> tuple[object, ...]:
    return tuple(json.loads(key(report.to_dict())))
