"""Show each amp test's gates and findings on the page of pytest-html, beside what it has itself."""

from __future__ import annotations

from importlib import import_module

import pytest

from pytest_amp.render.fragment import fragment
from pytest_amp.results.report import AmpReport


def add(config: pytest.Config, report: pytest.TestReport, amp: AmpReport) -> None:
    """Add ours to a test's extras, if pytest-html is there to show them."""
    if not config.pluginmanager.hasplugin("html"):
        return
    try:
        extras = import_module("pytest_html.extras")
    except ImportError:  # another plugin of that name
        return
    report.extras = [*getattr(report, "extras", []), extras.html(fragment(amp))]  # type: ignore[attr-defined]
