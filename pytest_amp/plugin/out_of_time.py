"""Say where a measurement was when a timeout ended it, and what may help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_amp import units
from pytest_amp.errors import add_note
from pytest_amp.experiment.job import Job, part_of
from pytest_amp.progress import Progress


@contextmanager
def located(job: Job, progress: Progress) -> Iterator[None]:
    """Add to what ``pytest.fail`` raises inside where that was.

    pytest-timeout fails a test in this way, wherever the test is at that time.
    """
    try:
        yield
    except pytest.xfail.Exception:
        raise
    except pytest.fail.Exception as error:
        help_ = _help(job, progress.phase or "") if str(error).startswith("Timeout") else ""
        add_note(error, f"pytest-amp: raised in {progress.place()}{help_}")
        raise


def _help(job: Job, phase: str) -> str:
    if phase.startswith("waiting"):
        return (
            "; measurements on one device take turns, so a timeout has to cover those of the other "
            "workers, too"
        )
    if part_of(phase) != "timing":
        return ""
    return (
        f"; timing alone may take {units.duration(job.settings.max_time)}, so a timeout has to be "
        "longer than that, or --amp-max-time shorter"
    )
