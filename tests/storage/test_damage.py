"""Whatever stands in one run of a storage, the others are read and no command is a traceback."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_amp.cli import main as cli
from pytest_amp.judge import comparison
from pytest_amp.results.values import Failure, Finding, Gate, Setting
from pytest_amp.storage.baseline import Baselines
from pytest_amp.storage.frame import history
from tests.helpers.saved_runs import ENVIRONMENT, SETTINGS, document, report, save

STRANGE = st.sampled_from(
    [
        None, True, -1, 3, 1.5, 1e308, -1e308, 1e-320, 10**30, float("nan"), float("inf"),
        "", "x" * 3000, "\ud800", "<script>\n", "2026-01-01T00:00:00", "9999-12-31T23:59:59+00:00",
        [], {}, [[1]], [None], ["x"], [float("nan")], [float("inf"), -1e308], {"a": {"b": []}},
    ]
)  # fmt: skip
GIVEN = {"loss_atol": 0.005, "select": ["AMP"], "ignore": {"AMP402": "on purpose"}}
# The same in each run; at random and with more examples it is a search for what is left.
QUIET = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LIMITS = {"speedup": 0.1, "memory": 0.1, "loss": 0.1}


def stored() -> dict[str, Any]:
    """A run with something in every part of its report."""
    content = document(
        report(
            day=2,
            gates=(Gate("compare:speedup", -0.1, -0.2, -0.3, -0.1, "fail", "slower"),),
            findings=(Finding("AMP402", "fp32-fallback", "warning", "it is", "m", None, {"a": 1}),),
            error=Failure("amp", "parity", 1, "E", "said"),
            notes=("a note",),
            settings={**SETTINGS, **{name: Setting(value, "cli") for name, value in GIVEN.items()}},
            environment=replace(ENVIRONMENT, flags={"cudnn.benchmark": True}),
        )
    )
    plain: dict[str, Any] = json.loads(json.dumps(content))  # each entry has a report of its own
    return plain


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in it."""
    children = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    for key, child in children:
        yield (*at, key)
        if isinstance(child, (dict, list)):
            yield from places(child, (*at, key))


def changed(content: Any, at: tuple[Any, ...], value: object) -> None:
    for key in at[:-1]:
        content = content[key]
    content[at[-1]] = copy.deepcopy(value)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The run as text, with one to three strange values: in both reports alike, or anywhere."""
    content = stored()
    within = content["benchmarks"][0]["extra_info"]["amp"] if draw(st.booleans()) else content
    for _ in range(draw(st.integers(1, 3))):
        changed(within, draw(st.sampled_from(list(places(within)))), draw(STRANGE))
    if within is not content:
        content["benchmarks"][1]["extra_info"]["amp"] = within
    return json.dumps(content)


@given(damaged())
@settings(QUIET, max_examples=150)
@pytest.mark.slow
def test_one_strange_value_is_the_end_of_nothing_else(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder)
        save(root, 1, document(report(day=1)))
        path = save(root, 2, text)
        assert (history(root)["run"] == "0001").sum() == 1
        for reference in ("newest", str(root / "*" / "*.json")):
            now = report(day=3)
            with closing(Baselines(root, reference)) as baselines:
                before, origin = baselines.of(now)  # the first run is one
            judged = comparison.compared(now, before, origin, LIMITS)
            json.dumps(judged.to_dict(), allow_nan=False)
            assert str(judged.baseline).isprintable()
        storage = ("--storage", str(root))
        assert cli.main(["history", *storage]) == 0
        assert cli.main(["history", "--json", *storage]) == 0
        assert cli.main(["compare", "1", str(path), "--fail=speedup:10%,loss:5%", *storage]) in (
            0, 1, 3, 4,
        )  # fmt: skip
        assert cli.main(["compare", str(path), "1", "--json", *storage]) in (0, 3, 4)


@given(damaged())
@settings(QUIET, max_examples=12)
@pytest.mark.slow
def test_a_page_is_drawn_of_whatever_is_there(text: str) -> None:
    pytest.importorskip("jinja2")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder)
        save(root, 1, document(report(day=1)))
        save(root, 2, text)
        page = root / "page.html"
        assert cli.main(["html", "-o", str(page), "--storage", str(root)]) == 0
        assert "<script" not in page.read_text("utf-8")
