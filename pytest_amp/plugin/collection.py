"""Find the tests that measure, and refuse those that can't be measured as they are written."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import pytest

from pytest_amp.codes import GATES
from pytest_amp.plugin import options

_REPETITION = "__pytest_repeat_step_number"  # the fixture of pytest-repeat
_POINTER = "request amp_benchmark and call amp_benchmark(setup), where setup(arm) returns the step"


def is_amp(item: pytest.Item) -> bool:
    """Return whether the test is marked ``amp``.

    For an item that is not a function, only its own markers count: a module's ``pytestmark`` is
    meant for its test functions, and not for its doctests.
    """
    if isinstance(item, pytest.Function):
        return item.get_closest_marker("amp") is not None
    return any(mark.name == "amp" for mark in item.own_markers)


def _fixture_names(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def is_step(item: pytest.Item) -> bool:
    """Return whether the test's body is itself the training step."""
    return is_amp(item) and "amp_benchmark" not in _fixture_names(item)


def id_of(item: pytest.Item) -> str:
    """Return the test's id as it was collected: xdist's ``--dist=loadgroup`` appends the group."""
    assert item.parent is not None
    return f"{item.parent.nodeid}::{item.name}"


def id_once(item: pytest.Item) -> str:
    """Return the test's id without the part by which pytest-repeat tells its repetitions apart."""
    return id_of(item).removesuffix(item.name) + name_once(item)


def name_once(item: pytest.Item) -> str:
    """Return the test's name, such as ``test_it[a]`` for its repetition ``test_it[a-2-3]``."""
    repeated = _REPETITION in getattr(getattr(item, "callspec", None), "params", {})
    return without_repetition(item.name) if repeated else item.name


def without_repetition(name: str) -> str:
    """Return a name or an id without what pytest-repeat may have put behind it, ``2-3``."""
    return re.sub(r"-\d+-\d+(?=\]$)|\[\d+-\d+\]$", "", name)


def mark_measuring_tests(items: Iterable[pytest.Item]) -> None:
    """Mark each test that requests amp_benchmark, so that ``-m amp`` selects it."""
    for item in items:
        if "amp_benchmark" in _fixture_names(item) and not is_amp(item):
            item.add_marker(pytest.mark.amp)


def make_benchmarks(items: Iterable[pytest.Item]) -> None:
    """Make the tests that measure benchmarks, unless their setting ``record`` is off."""
    for item in filter(is_amp, items):
        from pytest_amp.plugin import benchmark

        with contextlib.suppress(ValueError):  # a wrong marker, which `refuse_unfit` reports
            if options.item_settings(item, item.config.stash[options.LEVELS]).record:
                benchmark.join(item)


def refuse_unfit(session: pytest.Session) -> None:
    """Report a collection error for each file with a test that can't be measured as it is written.

    Only selected tests count, since a mistake elsewhere must not stop ``-k other``. It is not a
    UsageError, because an xdist worker could not report that.
    """
    problems: defaultdict[str, list[str]] = defaultdict(list)
    unfit = set()
    for item in filter(is_amp, session.items):
        for problem in _problems(item):
            unfit.add(item)
            problems[item.nodeid.partition("::")[0]].append(f"{item.nodeid}: {problem}")
    _refuse(session.config, problems)
    session.items[:] = [item for item in session.items if item not in unfit]


def refuse_misnamed(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Report a collection error for a marker of another name that has our thresholds.

    If a run is meant to gate, a test with ``@pytest.mark.apm(min_speedup=1.3)`` would otherwise
    silently go ungated.
    """
    if not options.is_gating(config):
        return
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        for mark in item.iter_markers():
            gates = [name for name in GATES if name in mark.kwargs]
            if gates and mark.name != "amp":
                problems[item.nodeid.partition("::")[0]].append(
                    f"{item.nodeid}: @pytest.mark.{mark.name} sets {' and '.join(gates)}, which "
                    "only @pytest.mark.amp gates"
                )
    _refuse(config, problems)


def _refuse(config: pytest.Config, problems: Mapping[str, Sequence[str]]) -> None:
    for file, lines in problems.items():
        report = pytest.CollectReport(file, "failed", "\n".join(lines), [])
        config.hook.pytest_collectreport(report=report)


def _problems(item: pytest.Item) -> Iterable[str]:
    import unittest

    try:
        list(options.marker_levels(item))
    except ValueError as error:
        yield f"@pytest.mark.amp: {error}"
    if not isinstance(item, pytest.Function):
        yield (
            f"@pytest.mark.amp on a {type(item).__name__}, which pytest-amp can't run: "
            "use a plain test function"
        )
    elif item.cls is not None and issubclass(item.cls, unittest.TestCase):
        yield (
            "@pytest.mark.amp on a unittest method, which would run without being measured: "
            "make it a plain function or a method of a plain class"
        )
    elif inspect.iscoroutinefunction(item.function) or inspect.isasyncgenfunction(item.function):
        yield (
            "@pytest.mark.amp on an async test, which would run without being measured: "
            "make it a plain function"
        )
    elif is_step(item) and "amp_scaler" in item._fixtureinfo.argnames:
        yield (
            "amp_scaler together with a body that is the step: pytest-amp scales the loss itself "
            f"there; to use the scaler yourself, {_POINTER}"
        )
