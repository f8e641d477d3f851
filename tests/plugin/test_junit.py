"""pytest's JUnit file has the figures of each amp test."""

from __future__ import annotations

from importlib.metadata import version
from xml.etree import ElementTree

import pytest

from tests.helpers.project import QUICK, STEP, UNDECIDED, gate, measure, read

TESTS = """
import pytest, torch
import torch.nn.functional as F

@pytest.mark.amp
def test_passing(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.amp(min_memory_reduction=0.99)
def test_failing(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.amp
def test_half(model, optimizer, batch):
    return F.cross_entropy(model.half()(batch[0].half()), batch[1])

@pytest.mark.amp
@pytest.mark.skip(reason="not today")
def test_skipped(model, optimizer, batch):
    pass

@pytest.mark.amp
def test_broken(model, optimizer, batch):
    raise OSError("no such data")

def test_forgot(amp_benchmark):
    pass

@pytest.mark.amp
def test_without_its_fixture(missing):
    pass

def test_ordinary():
    pass
"""


def cases(project: pytest.Pytester) -> dict[str, dict[str, str]]:
    """Each test case's properties of ours, by the test's name."""
    root = ElementTree.parse(project.path / "junit.xml").getroot()
    return {
        str(case.get("name")): {
            str(each.get("name")): str(each.get("value")) for each in case.iter("property")
        }
        for case in root.iter("testcase")
    }


def test_each_amp_test_has_its_verdict_and_what_is_known_of_its_figures(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=TESTS)
    _, reports = measure(project, "--junitxml=junit.xml")
    found = cases(project)
    assert {name: each.get("amp.verdict") for name, each in found.items()} == {
        "test_passing": "pass",
        "test_failing": "fail",
        "test_half": reports["test_half"]["verdict"],
        "test_skipped": "skipped",
        "test_broken": "error",
        "test_forgot": "fail",
        "test_without_its_fixture": "error",
        "test_ordinary": None,
    }
    for name in ("test_passing", "test_failing"):
        report = reports[name]
        for figure in ("memory_reduction", "loss_diff", "coverage"):
            assert float(found[name][f"amp.{figure}"]) == pytest.approx(report[figure], rel=1e-5)
        assert "amp.speedup" not in found[name]  # nothing was timed
    assert "amp.findings" not in found["test_passing"]
    assert found["test_forgot"] == {"amp.verdict": "fail", "amp.findings": "AMP001"}
    assert found["test_skipped"] == {"amp.verdict": "skipped"}
    codes = {each["code"] for each in reports["test_half"]["findings"]}
    assert codes
    assert set(found["test_half"]["amp.findings"].split()) == codes


def test_a_timed_test_has_its_speedup_and_the_bounds_of_it(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    _, reports = measure(
        project, "--junitxml=junit.xml", quick=("--amp-max-time=1", "--amp-steps=2")
    )
    found, speedup = cases(project)["test_step"], reports["test_step"]["speedup"]
    for name, key in (("amp.speedup", "value"), ("amp.low", "low"), ("amp.high", "high")):
        if speedup[key] is None:
            assert name not in found
        else:
            assert float(found[name]) == pytest.approx(speedup[key], rel=1e-5)
    assert float(found["amp.speedup"]) > 0


def test_a_suppressed_finding_has_no_code_there(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=TESTS)
    _, reports = measure(project, "--junitxml=junit.xml", "--amp-ignore=AMP")
    assert reports["test_half"]["findings"]
    assert "amp.findings" not in cases(project)["test_half"]


@pytest.mark.needs("xdist")
def test_workers_send_theirs(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=TESTS)
    alone = [*QUICK, "--junitxml=junit.xml"]
    project.runpytest_subprocess(*alone)
    expected = cases(project)
    project.runpytest_subprocess("-n1", *alone)
    assert cases(project) == expected


@pytest.mark.needs("pytest_rerunfailures")
def test_each_attempt_has_its_own_and_no_earlier_one_s(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    options = ("--reruns=2", "--only-rerun=AmpInconclusive", "--amp-strict")
    measure(project, "--junitxml=junit.xml", *options, quick=UNDECIDED)
    attempts = read(project)["tests"]
    root = ElementTree.parse(project.path / "junit.xml").getroot()
    given = [[each.get("name") for each in case.iter("property")] for case in root.iter("testcase")]
    assert [len(names) for names in given] == [len(set(names)) for names in given]
    assert len(attempts) == 3
    # Before version 16.7, pytest-rerunfailures had one case for all attempts.
    theirs = tuple(map(int, version("pytest-rerunfailures").split(".")[:2]))
    assert len(given) == (3 if theirs >= (16, 7) else 1)
    (case,) = cases(project).values()
    assert case["amp.verdict"] == "inconclusive"
    last = gate(attempts[-1], "speedup")
    assert float(case["amp.speedup"]) == pytest.approx(last["value"], rel=1e-5)


def test_properties_of_the_user_s_own_stay(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        def test_it(amp_benchmark, setup, record_property):
            record_property("amp.machine", "the old one")
            amp_benchmark(setup)
        """
    )
    measure(project, "--junitxml=junit.xml", "-o", "junit_family=xunit1")
    assert cases(project)["test_it"].items() >= {
        ("amp.machine", "the old one"),
        ("amp.verdict", "pass"),
    }


@pytest.mark.parametrize(
    "hostile", ["</testcase>", '"><a b="', "a\nb", "\x1b[31m", "&amp;", "|`@team <details>"]
)
def test_a_hostile_id_leaves_the_file_well_formed(project: pytest.Pytester, hostile: str) -> None:
    project.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.parametrize("case", [1], ids=[{hostile!r}])
        def test_it(amp_benchmark, setup, case):
            amp_benchmark(setup)
        """
    )
    measure(project, "--junitxml=junit.xml")
    (found,) = cases(project).values()
    assert found["amp.verdict"] == "pass"
