"""pytest's hooks, which only pass on to the modules of this package what pytest says.

This module is loaded in every pytest run of every project that has pytest-amp installed. So until
there is an amp test, nothing here imports torch, numpy or pandas, nor much of our own code.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_amp.plugin import collection, options, seeding, tracebacks
from pytest_amp.plugin.fixtures import amp_benchmark, amp_device, amp_scaler, cuda_device
from pytest_amp.plugin.session import Session

__all__ = ["amp_benchmark", "amp_device", "amp_scaler", "cuda_device"]

SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options and ini keys."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and register the parts that keep something during the run."""
    config.addinivalue_line("markers", options.marker_help(in_full=config.option.markers))
    levels = config.stash[options.LEVELS] = options.session_levels(config)
    config.stash[SESSION] = Session(config)
    config.pluginmanager.register(config.stash[SESSION], "amp-session")
    tracebacks.register(config)
    if any(options.of_session(levels, name) for name in options.COMPARING):
        from pytest_amp.plugin import compare

        compare.load_accepted(config)  # a broken file is better told now
    mode = options.of_session(levels, "snapshot")
    if mode != "off":
        from pytest_amp.plugin.snapshot import MapFiles

        config.pluginmanager.register(MapFiles(config, mode == "update"), "amp-snapshot")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that measure, and make them benchmarks, before anything is deselected."""
    collection.mark_measuring_tests(items)
    collection.refuse_misnamed(config, items)  # before -m deselects them
    collection.make_benchmarks(items)


@pytest.hookimpl(tryfirst=True)  # before pytest counts the errors, and xdist sends the items
def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse the selected tests that can't be measured as they are written."""
    collection.refuse_unfit(session)


def pytest_runtest_setup(item: pytest.Item) -> None:  # after the skip marks, before the fixtures
    """Have an amp test's seed set before its first fixture."""
    if collection.is_amp(item):
        seeding.seed_before_fixtures(item)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> None:
    """Set the seed, if the test waits for it."""
    seeding.seed(request.config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Restore the random number generators after the test's teardown."""
    try:
        return (yield)
    finally:
        seeding.unseed(item.config)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Measure a test whose body is the training step, instead of calling it once."""
    __tracebackhide__ = True
    if collection.is_amp(pyfuncitem):
        seeding.draw_on(pyfuncitem)
    if not collection.is_step(pyfuncitem):
        return None
    from pytest_amp.plugin import measuring

    measuring.run_body(pyfuncitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail an amp test that passed without measuring anything."""
    __tracebackhide__ = True
    if not collection.is_amp(item):
        return (yield)
    from pytest_amp.plugin import benchmark, makereport

    benchmark.use(item)
    seeding.keep(item)
    with makereport.running(item):
        result = yield
    makereport.require_measurement(item)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach our report to pytest's, and hand the measured times to pytest-benchmark."""
    report = yield
    if collection.is_amp(item):
        from pytest_amp.plugin import makereport

        makereport.attach(item, call, report)
        makereport.record(item, report, item.config.stash[SESSION].run)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-benchmark, which may raise
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Write the reports even if another plugin raises at the end of the run."""
    try:
        return (yield)
    finally:
        seeding.unseed(session.config)  # after Ctrl-C no teardown has done it
        if SESSION in session.config.stash:
            session.config.stash[SESSION].write_reports(session)
            session.config.stash[SESSION].show_unasked()
