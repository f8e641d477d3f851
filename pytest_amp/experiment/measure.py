"""Measure a step outside of pytest, in a script or a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job, failed
from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.device import choose
from pytest_amp.progress import Progress
from pytest_amp.provenance import rank
from pytest_amp.results.report import AmpReport
from pytest_amp.settings import table
from pytest_amp.settings.resolved import resolve

__tracebackhide__ = unless_our_bug

# Whoever has the report has these answers: the verdict, and the gates that have none.
_OF_PYTEST_RUNS = ("record", "strict", "confirm", "processes")
NAMES = ("static", *(e.name for e in table.TABLE if e.marker and e.name not in _OF_PYTEST_RUNS))


def measure(setup: Callable[[Arm], Callable[[], Any]], **settings: Any) -> AmpReport:
    """Measure both arms of a step and judge them, without pytest.

    No gate is asserted: look at the report's `verdict`, or call its `check()`.

    Args:
        setup: builds an arm; it is called for each arm, with the same seed. It returns the step: a
            function without arguments that runs one optimization step and returns its loss.
        settings: what `@pytest.mark.amp` takes, such as ``min_speedup=1.3``, and ``static=True``
            to leave the timing out.

    Raises:
        AmpError: the step can't be measured as it is written.
        ValueError: a setting is unknown, or its value is not valid; the message says what is.
        Exception: whatever the setup or the step raises.
    """
    if not callable(setup):
        raise AmpError(f"measure(setup) takes a function of the arm, not a {type(setup).__name__}")
    for name in settings:
        if name in NAMES:
            continue
        if name in table.BY_NAME:
            raise ValueError(
                f"{name} is a setting of pytest runs, which measure() does without; "
                f"it takes {', '.join(NAMES)}"
            )
        raise ValueError(table.unknown(name, NAMES))
    chosen = resolve([("marker", settings)])
    job = Job(_name_of(setup), setup, choose(chosen.device), chosen, rank=rank())
    progress = Progress()
    try:
        return experiment.run(job, progress)
    except Exception as error:
        failed(job, progress, error)  # adds what a rule says of it
        raise


def _name_of(setup: Any) -> str:
    """Return a text such as ``train::setup``, which stands where a test's id would."""
    named = setup if hasattr(setup, "__qualname__") else type(setup)
    return f"{named.__module__}::{named.__qualname__}"
