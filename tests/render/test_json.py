"""The JSON report: what it holds, that it is JSON, and that nobody ever finds half of it."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_amp.render import json as amp_json
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import ArmRun, Environment, Estimate, Failure, Finding, Gate, Setting

VALIDATOR = jsonschema.Draft202012Validator(amp_json.schema())
CREATED = "2025-11-23T10:00:00+00:00"
RUN = {"id": "0007", "commit": "4f1c2d", "branch": "main", "dirty": False, "command": "pytest"}
SKIPPED = AmpReport("tests/test_vit.py::test_vit", "skipped", CREATED, skip_reason="no CUDA")
NONFINITE = AmpReport(
    nodeid="tests/test_gan.py::test_gan",
    verdict="fail",
    started=CREATED,
    arms={
        "fp32": ArmRun((0.2,), {"critic": (1.0, 0.5), "generator": (2.0, 1.0)}, 100, 200),
        "amp": ArmRun((0.1,), {"critic": (1.0, 0.5), "generator": (2.0, math.inf)}, 60, 120),
    },
    gates=(Gate("loss_diff", 0.02, math.nan, None, None, "fail", "the amp loss is not finite"),),
    loss_diff=math.nan,
)


def document(*reports: AmpReport) -> dict[str, Any]:
    return amp_json.document(reports, RUN, CREATED, "0.1.0")


# -- any report --------------------------------------------------------------------------------

words = st.text(max_size=20)
text = st.none() | words
count = st.integers(0, 2**60)
plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)


def reports(finite: bool) -> st.SearchStrategy[AmpReport]:
    """Reports as the plugin could make them; `finite` also without NaN and infinities."""

    def number(low: float | None = None, high: float | None = None) -> st.SearchStrategy[float]:
        numbers = st.floats(low, high, allow_nan=False, allow_infinity=False)
        strange = st.sampled_from([math.nan, math.inf, -math.inf])
        return numbers if finite else numbers | strange

    def many(values: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
        return st.lists(values, min_size=least, max_size=3).map(tuple)

    anything, natural = number(-1e300, 1e300), number(0, 1e300)
    arm = st.builds(
        ArmRun,
        step_times_s=many(natural),
        losses_by_key=st.dictionaries(words, many(anything), max_size=2),
        peak_bytes=st.none() | count,
        reserved_bytes=st.none() | count,
        flops_by_dtype=st.dictionaries(words, count, max_size=2),
        scales=many(natural),
        skipped_steps=count,
    )
    gate = st.builds(
        Gate,
        name=st.sampled_from(
            [
                "speedup",
                "memory_reduction",
                "loss_diff",
                "coverage",
                "skipped_steps",
                "compare:loss",
            ]
        ),
        threshold=st.none() | anything,
        value=st.none() | anything,
        low=st.none() | anything,
        high=st.none() | anything,
        verdict=st.sampled_from(["pass", "fail", "inconclusive", "not_gated"]),
        reason=words,
    )
    finding = st.builds(
        Finding,
        code=st.from_regex("AMP[0-9]{3}", fullmatch=True),
        name=words,
        severity=st.sampled_from(["error", "warning"]),
        message=words,
        module=text,
        location=text,
        no_location=text,
        evidence=st.dictionaries(words, plain_json, max_size=2),
        confirmed=st.booleans(),
        suppressed=text,
    )
    environment = st.builds(
        Environment, words, words, words, text, text, text, words, st.booleans(),
        st.dictionaries(words, plain_json, max_size=2),
    )  # fmt: skip
    sources = st.sampled_from(["marker", "override", "cli", "ini", "default"])
    return st.builds(
        AmpReport,
        nodeid=words,
        verdict=st.sampled_from(["pass", "fail", "inconclusive", "skipped", "error"]),
        started=words,
        duration_s=natural,
        attempt=st.integers(1, 9),
        worker=text,
        rank=st.none() | count,
        skip_reason=text,
        error=st.none() | st.builds(Failure, text, text, st.none() | count, words, words),
        environment=st.none() | environment,
        settings=st.dictionaries(words, st.builds(Setting, plain_json, sources), max_size=2),
        gates=many(gate),
        arms=st.just({}) | st.fixed_dictionaries({"fp32": arm, "amp": arm}),
        speedup=st.none()
        | st.builds(
            Estimate,
            pair_ratios=many(natural, least=1),
            low=st.none() | natural,
            high=st.none() | natural,
            block_steps=st.integers(1, 2**40),
        ),
        loss_diff=st.none() | natural,
        noise_floor=st.none() | natural,
        coverage=st.none() | number(0, 1),
        findings=many(finding),
        notes=many(words),
        phases_s=st.fixed_dictionaries(
            {"parity": natural, "inspection": natural, "timing": natural}
        ),
    )


@settings(deadline=None)
@given(st.lists(reports(finite=False), max_size=2))
def test_any_report_is_valid_json_of_schema_1(several: list[AmpReport]) -> None:
    written = json.dumps(document(*several), allow_nan=False)
    VALIDATOR.validate(json.loads(written))


@settings(deadline=None)
@given(reports(finite=True))
def test_a_finite_report_comes_back_as_it_was(report: AmpReport) -> None:
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["nonfinite"] == []
    assert AmpReport.from_dict(data) == report


# -- what it holds -----------------------------------------------------------------------------


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(amp_json.schema())


def test_the_schema_knows_every_key_of_a_test() -> None:
    test = amp_json.schema()["$defs"]["test"]
    assert set(test["properties"]) == set(test["required"]) == set(SKIPPED.to_dict())


def test_the_head_says_what_ran() -> None:
    assert document(SKIPPED) == {
        "schema": 1,
        "created": CREATED,
        "pytest_amp": "0.1.0",
        "run": {**RUN, "started": None},
        "tests": [SKIPPED.to_dict()],
    }


def test_what_is_not_finite_is_null_and_named() -> None:
    (test,) = document(NONFINITE)["tests"]
    assert test["arms"]["amp"]["losses"] == {"critic": [1.0, 0.5], "generator": [2.0, None]}
    assert test["nonfinite"] == [
        "gates[0].value",
        "arms.amp.losses.generator[1]",
        "loss_diff",
    ]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("schema",), 2),
        (("run", "dirty"), "yes"),
        (("tests", 0, "verdict"), "passed"),
        (("tests", 0, "attempt"), 0),
        (("tests", 0, "coverage"), 1.2),
        (("tests", 0, "gates", 0, "verdict"), "skipped"),
        (("tests", 0, "gates", 0, "name"), "latency"),
        (("tests", 0, "arms", "amp", "peak_bytes"), -1),
        (("tests", 0, "settings"), {"steps": {"value": 20, "from": "env"}}),
        (("tests", 0, "findings"), [{"code": "AMP203"}]),
    ],
)
def test_the_schema_refuses(path: tuple[str | int, ...], wrong: object) -> None:
    data = document(NONFINITE)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    assert not VALIDATOR.is_valid(data)


def test_a_key_that_a_later_version_adds_is_no_offence() -> None:
    data = document(NONFINITE)
    data["tests"][0]["gates"][0]["later"] = data["tests"][0]["later"] = data["later"] = 1
    assert VALIDATOR.is_valid(data)


# -- writing -----------------------------------------------------------------------------------


def test_written_text_reads_back(tmp_path: Path) -> None:
    hostile = "tests/a.py::test_x[\u00fc\n<script>\N{ROCKET}\udc80]"
    data = document(replace(SKIPPED, nodeid=hostile))
    amp_json.write(tmp_path / "new" / "amp.json", data)
    written = (tmp_path / "new" / "amp.json").read_text("utf-8")
    assert "\u00fc" in written
    assert "\N{ROCKET}" in written
    assert json.loads(written) == data


def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "amp.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        amp_json.write(path, document(SKIPPED))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_is_not_finite_is_refused_before_the_disk_is_touched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        amp_json.write(tmp_path / "new" / "amp.json", {"schema": math.nan})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_file_is_as_readable_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        amp_json.write(tmp_path / "amp.json", document(SKIPPED))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "amp.json").stat().st_mode) == mode


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "amp.json").symlink_to("real.json")
    amp_json.write(tmp_path / "amp.json", document(SKIPPED))
    assert (tmp_path / "amp.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text("utf-8")) == document(SKIPPED)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        amp_json.write(tmp_path / "pipe", document(SKIPPED))
        assert json.loads(os.read(reader, 2**16)) == document(SKIPPED)
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
