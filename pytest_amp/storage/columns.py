"""The columns of the history: of each test in each run, what there is and in which unit.

One table, from which the index, the DataFrame and the documentation are made.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pytest_amp.judge.parity import tail_mean
from pytest_amp.storage.key import Report, key
from pytest_amp.storage.store import Run


class Column(NamedTuple):
    """`of` takes a run and a report; `unit` is "" where there is none."""

    name: str
    unit: str
    help: str
    of: Callable[[Run, Report], Any]


def _arm(name: str, field: str) -> Callable[[Run, Report], Any]:
    return lambda _, report: _mapped(report["arms"].get(name)).get(field)


def _step_time(name: str) -> Callable[[Run, Report], float | None]:
    def of(_: Run, report: Report) -> float | None:
        times = _mapped(report["arms"].get(name)).get("step_times_s")
        return statistics.median(times) if times else None

    return of


def _loss(name: str) -> Callable[[Run, Report], float | None]:
    def of(_: Run, report: Report) -> float | None:
        curves = _mapped(_mapped(report["arms"].get(name)).get("losses"))
        curve = next(iter(curves.values()), None)
        if not curve:
            return None
        return math.nan if None in curve else tail_mean(curve)

    return of


def _of(field: str) -> Callable[[Run, Report], Any]:
    return lambda _, report: report.get(field)


def _in(group: str, field: str) -> Callable[[Run, Report], Any]:
    return lambda _, report: _mapped(report.get(group)).get(field)


def _codes(severity: str) -> Callable[[Run, Report], str]:
    def of(_: Run, report: Report) -> str:
        spoken = (each for each in report["findings"] if each["suppressed"] is None)
        return " ".join(sorted({each["code"] for each in spoken if each["severity"] == severity}))

    return of


def _flags(_: Run, report: Report) -> str:
    flags = _mapped(_mapped(report.get("environment")).get("flags"))
    return " ".join(f"{name}={value}" for name, value in sorted(flags.items()))


def _failed(_: Run, report: Report) -> str:
    return " ".join(each["name"] for each in report["gates"] if each["verdict"] == "fail")


def _mapped(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


TEXTS: tuple[Column, ...] = (
    Column("nodeid", "", "the test", _of("nodeid")),
    Column("verdict", "", "pass, fail, inconclusive, skipped or error", _of("verdict")),
    Column("run", "", "the run's number, or its file's name", lambda run, _: run.name),
    Column("run_id", "", "the run, as --amp-json has it too", lambda run, _: run.id),
    Column("commit", "", "the commit", lambda run, _: run.commit),
    Column("branch", "", "the branch", lambda run, _: run.branch),
    Column("device", "", "the device's name", _in("environment", "device")),
    Column("device_type", "", "cuda, xpu, mps or cpu", _in("environment", "device_type")),
    Column("dtype", "", "what amp ran in", _in("environment", "dtype")),
    Column("torch", "", "version of torch", _in("environment", "torch")),
    Column("cuda", "", "version of CUDA or HIP", _in("environment", "cuda")),
    Column("cudnn", "", "version of cuDNN", _in("environment", "cudnn")),
    Column("driver", "", "version of the driver", _in("environment", "driver")),
    Column("flags", "", "flags that shift the baseline, as name=value", _flags),
    Column("failed", "", "gates that failed", _failed),
    Column("errors", "", "rules that found an error", _codes("error")),
    Column("warnings", "", "rules that warned", _codes("warning")),
    Column("key", "", "equal where results may be compared", lambda _, report: key(report)),
)  # fmt: skip

NUMBERS: tuple[Column, ...] = (
    Column("dirty", "0 or 1", "whether there were changes beside the commit",
           lambda run, _: run.dirty),
    Column("attempt", "", "1, or more where the test was rerun", _of("attempt")),
    Column("duration_s", "s", "how long the test took", _of("duration_s")),
    Column("speedup", "ratio", "fp32 step time / amp step time", _in("speedup", "value")),
    Column("speedup_low", "ratio", "lower bound of the speedup", _in("speedup", "low")),
    Column("speedup_high", "ratio", "upper bound of the speedup", _in("speedup", "high")),
    Column("pairs", "", "pairs of timed blocks", _in("speedup", "pairs")),
    Column("fp32_step_s", "s", "median step time of the fp32 arm", _step_time("fp32")),
    Column("amp_step_s", "s", "median step time of the amp arm", _step_time("amp")),
    Column("fp32_peak_bytes", "bytes", "peak memory of the fp32 arm", _arm("fp32", "peak_bytes")),
    Column("amp_peak_bytes", "bytes", "peak memory of the amp arm", _arm("amp", "peak_bytes")),
    Column("memory_reduction", "fraction", "1 - amp peak / fp32 peak", _of("memory_reduction")),
    Column("fp32_loss", "", "mean of the fp32 loss's last quarter", _loss("fp32")),
    Column("amp_loss", "", "mean of the amp loss's last quarter", _loss("amp")),
    Column("loss_diff", "fraction", "difference of the two, relative to fp32's", _of("loss_diff")),
    Column("noise_floor", "fraction", "how far rounding alone moves the loss", _of("noise_floor")),
    Column("coverage", "fraction", "share of the FLOPs in the amp dtype", _of("coverage")),
    Column("skipped_steps", "steps", "steps that the GradScaler skipped",
           _arm("amp", "skipped_steps")),
)  # fmt: skip

STARTED = Column("started", "UTC", "when the test began", lambda _, report: report["started"])
COLUMNS: tuple[Column, ...] = (STARTED, *TEXTS, *NUMBERS)


def page() -> str:
    """docs/reference/history.md: each column, its unit and what it holds."""
    rows = [f"| `{column.name}` | {column.unit} | {column.help} |" for column in COLUMNS]
    return (
        "# The columns of the history\n\n"
        "`pytest_amp.history()` and `pytest-amp history --csv` have one row per test and run, with "
        "these\ncolumns. Texts are categories and numbers are floats; a missing value is NaN. "
        "[Compare with earlier\nresults](../how-to/compare-with-earlier-results.md) shows how to "
        "use them.\n\n"
        "This page is generated by `python scripts/generate_docs.py`.\n\n"
        "| column | unit | what it holds |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )
