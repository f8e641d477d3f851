"""An amp test is a pytest test: whatever pytest and its plugins do with tests works with it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from xml.etree import ElementTree

import jsonschema
import pytest
import torch

from pytest_amp.render.json import schema
from tests.helpers.project import QUICK, STEP, UNDECIDED, measure, read

FAILING = """
import pytest
import torch.nn.functional as F

@pytest.mark.amp(min_memory_reduction=0.99)
def test_failing(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""


def marked(mark: str, test: str = FAILING) -> str:
    return test.replace("@pytest", f"@pytest.mark.{mark}\n@pytest", 1)


def table_of(result: pytest.RunResult) -> list[str]:
    """The lines of our section of the terminal summary."""
    lines: list[str] = result.outlines
    starts = [i for i, line in enumerate(lines) if line.strip("= ") == "pytest-amp"]
    assert len(starts) == 1
    rest = lines[starts[0] + 1 :]
    return rest[: next((i for i, line in enumerate(rest) if line.startswith("=")), len(rest))]


# What pytest itself does with tests


def test_x_stops_at_a_missed_gate_and_what_ran_is_reported(project: pytest.Pytester) -> None:
    project.makepyfile(test_a=STEP, test_b=FAILING, test_c=STEP)
    result, reports = measure(project, "-x")
    result.assert_outcomes(passed=1, failed=1)
    assert list(reports) == ["test_step", "test_failing"]
    result.stdout.fnmatch_lines(["1 passed, 1 failed", "*stopping after 1 failures*"])


def test_lf_runs_the_missed_gate_again_and_nothing_else(project: pytest.Pytester) -> None:
    project.makepyfile(test_a=STEP, test_b=FAILING)
    project.runpytest(*QUICK).assert_outcomes(passed=1, failed=1)
    result, reports = measure(project, "--lf")
    result.assert_outcomes(failed=1)
    assert list(reports) == ["test_failing"]


def test_a_gate_may_be_expected_to_fail_and_the_table_says_so(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=marked("xfail(reason='known')"))
    result, reports = measure(project)
    result.assert_outcomes(xfailed=1)
    assert result.ret == pytest.ExitCode.OK
    assert reports["test_failing"]["verdict"] == "fail"
    assert reports["test_failing"]["notes"] == [
        "expected to fail (xfail), so pytest does not count it as failed: known"
    ]


def test_xfail_may_name_the_exception(project: pytest.Pytester) -> None:
    raises = "import pytest_amp\n" + marked("xfail(raises=pytest_amp.AmpRegression, strict=True)")
    project.makepyfile(test_it=raises)
    result, _ = measure(project)
    result.assert_outcomes(xfailed=1)


def test_a_gate_that_holds_again_fails_a_strict_xfail(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=marked("xfail(strict=True)", STEP))
    result, reports = measure(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*"])
    assert reports["test_step"]["verdict"] == "pass"


def test_skipif_skips_before_anything_is_built(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=marked("skipif(True, reason='no time')"))
    result, reports = measure(project)
    result.assert_outcomes(skipped=1)
    assert reports["test_failing"]["skip_reason"] == "no time"
    assert reports["test_failing"]["arms"] == {}


def test_a_test_may_be_skipped_from_within(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        def test_later(amp_benchmark):
            pytest.skip("later")
        """
    )
    result, reports = measure(project)
    result.assert_outcomes(skipped=1)
    assert reports["test_later"]["verdict"] == "skipped"


def test_q_says_in_one_line_what_did_not_pass(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP + FAILING)
    result, _ = measure(project, "-q", "--tb=no")
    failing, counts, *rest = [line for line in table_of(result) if line]
    assert failing.startswith("FAIL test_it.py::test_failing - memory_reduction: ")
    assert len(failing) <= 80
    assert counts == "1 passed, 1 failed"
    assert all("pytest-amp" not in line for line in rest)


def test_v_shows_every_gate_and_every_setting_given(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, _ = measure(project, "-v", "--amp-seed=3")
    result.stdout.fnmatch_lines(
        ["PASS  test_it.py::test_step", "*ok *loss_diff:*", "*not gated *coverage:*"]
    )
    assert "seed 3 (cli)" in " ".join(" ".join(table_of(result)).split())


def test_nothing_is_shown_where_nothing_was_measured(project: pytest.Pytester) -> None:
    project.makepyfile("def test_other(): pass")
    result = project.runpytest("-v")
    result.stdout.no_fnmatch_line("*= pytest-amp =*")


def test_without_a_terminal_the_gates_still_hold_and_the_report_is_written(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP + FAILING)
    result = project.runpytest_subprocess("-p", "no:terminal", "--amp-json=amp.json", *QUICK)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.outlines == []
    assert [test["verdict"] for test in read(project)["tests"]] == ["pass", "fail"]


def test_without_pytest_s_reporter_there_is_no_table_either(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest_subprocess("-p", "no:terminalreporter", *QUICK)
    assert result.ret == pytest.ExitCode.OK
    assert "pytest-amp" not in result.stdout.str()


def test_warnings_may_be_errors(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=STEP
        + """
def test_setup_of_its_own(amp_benchmark, setup):
    amp_benchmark(setup)
"""
    )
    result, _ = measure(project, "-W", "error", quick=("--amp-max-time=1", "--amp-steps=2"))
    result.assert_outcomes(passed=2)


def test_junit_has_the_failure_with_its_message(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP + FAILING)
    project.runpytest("--junitxml=junit.xml", *QUICK)
    suite = ElementTree.parse(project.path / "junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors"), suite.get("tests")) == ("1", "0", "2")
    failure = next(suite.iter("failure"))
    assert "AmpRegression: memory_reduction" in str(failure.get("message"))
    assert "is below 99%" in str(failure.text)
    assert "Traceback" not in str(failure.text)


# What a test may do wrong with amp_benchmark


def test_a_benchmark_that_is_never_called_fails_for_having_measured_nothing(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it="def test_forgot(amp_benchmark): pass")
    result, reports = measure(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["FAILED *test_forgot - pytest_amp.AmpRegression: AMP001 noth*"])
    assert [each["code"] for each in reports["test_forgot"]["findings"]] == ["AMP001"]


def test_gates_left_unasserted_are_told_as_a_note(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.amp(min_memory_reduction=0.99)
        def test_unchecked(amp_benchmark, setup):
            amp_benchmark(setup, check=False)

        @pytest.mark.amp(min_memory_reduction=0.99)
        def test_checked(amp_benchmark, setup):
            result = amp_benchmark(setup, check=False)
            assert result.verdict == "fail"
            result.check()
        """
    )
    result, reports = measure(project)
    result.assert_outcomes(passed=1, failed=1)
    assert reports["test_unchecked"]["verdict"] == reports["test_checked"]["verdict"] == "fail"
    assert len(reports["test_unchecked"]["notes"]) == 1
    assert "check=False without result.check()" in reports["test_unchecked"]["notes"][0]
    assert reports["test_checked"]["notes"] == []


def test_a_project_may_wrap_the_fixture_in_its_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        from functools import partial
        import pytest

        @pytest.fixture
        def amp_benchmark(amp_benchmark):
            return partial(amp_benchmark, check=False)

        def test_wrapped(amp_benchmark, setup):
            amp_benchmark(setup)

        def test_forgot(amp_benchmark):
            pass
        """
    )
    result, reports = measure(project)
    result.assert_outcomes(passed=1, failed=1)
    assert reports["test_wrapped"]["verdict"] == "pass"


def test_what_a_body_cannot_measure_is_told_without_our_own_source(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP.replace("return ", ""))
    result, _ = measure(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the test returned no loss: *"])
    assert "experiment.py" not in result.stdout.str()


# Beside other plugins


def test_a_rerun_retries_a_missing_answer_and_only_that(project: pytest.Pytester) -> None:
    project.makepyfile(test_a=STEP, test_b=FAILING)
    result, _ = measure(
        project, "--reruns=2", "--only-rerun=AmpInconclusive", "--amp-strict", quick=UNDECIDED
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*= 2 failed, 2 rerun in *"])
    seen = [(test["nodeid"], test["attempt"]) for test in read(project)["tests"]]
    assert seen == [
        ("test_a.py::test_step", 1),
        ("test_a.py::test_step", 2),
        ("test_a.py::test_step", 3),
        ("test_b.py::test_failing", 1),
    ]


BESIDE_BENCHMARK = (
    STEP
    + """
def test_benchmark(benchmark):
    assert benchmark(sum, [1, 2]) == 3
"""
)


def test_pytest_benchmark_s_own_tests_run_beside_ours(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=BESIDE_BENCHMARK)
    result, reports = measure(project, "--benchmark-max-time=0.01")
    result.assert_outcomes(passed=2)
    assert list(reports) == ["test_step"]
    result.stdout.fnmatch_lines(["*= pytest-amp =*", "*- benchmark: 1 tests -*", "test_bench*"])


def test_pytest_benchmark_may_be_switched_off(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest_subprocess("-p", "no:benchmark", *QUICK)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("benchmark: *")
    result.stdout.fnmatch_lines(["*= pytest-amp =*"])


# Runs that time something take turns on a device; static ones need not.
TIMED = ("--amp-steps=2", "--amp-max-time=5")

# Each writes who measures when, and none measures before both have begun.
TAKING_TURNS = """
import os, time
from pathlib import Path
import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
HERE = Path(__file__).parent

@pytest.mark.amp(min_speedup=0.02)
@pytest.mark.parametrize("n", [0, 1])
def test_turn(amp_benchmark, setup, n):
    (HERE / f"ready-{n}").touch()
    deadline = time.monotonic() + 60
    while not ((HERE / "ready-0").exists() and (HERE / "ready-1").exists()):
        assert time.monotonic() < deadline, "the other worker never came"
        time.sleep(0.01)

    def logged(arm):
        step = setup(arm)
        def one():
            with (HERE / "log").open("a") as log:
                log.write(f"{WORKER}\\n")
            time.sleep(0.01)
            return step()
        return one

    amp_benchmark(logged, check=False)

def test_failing(amp_benchmark):
    pass
"""


@pytest.mark.slow
def test_xdist_workers_take_turns_and_share_one_table_and_one_report(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=TAKING_TURNS)
    result = project.runpytest_subprocess(
        "-n2", "--amp-json=amp.json", "--amp-min-speedup=2", *TIMED
    )
    result.assert_outcomes(passed=2, failed=1)
    workers = (project.path / "log").read_text().split()
    changes = sum(one != other for one, other in pairwise(workers))
    assert set(workers) == {"gw0", "gw1"}
    assert changes == 1
    tests = read(project)["tests"]
    jsonschema.validate(read(project), schema())
    assert sorted(test["nodeid"] for test in tests) == [
        "test_it.py::test_failing", "test_it.py::test_turn[0]", "test_it.py::test_turn[1]",
    ]  # fmt: skip
    assert {test["worker"] for test in tests if "turn" in test["nodeid"]} == {"gw0", "gw1"}
    assert "2 passed, 1 failed" in table_of(result)
    assert "2 tests keep their own min_speedup" in table_of(result)


def test_an_unfit_test_is_told_by_xdist_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.amp(min_speedpu=1)
        def test_step(): ...
        """
    )
    result = pytester.runpytest_subprocess("-n2")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_it.py::test_step: *did you mean min_speedup?*"])
    assert "INTERNALERROR" not in result.stdout.str()


# Ctrl-C

INTERRUPTED = (
    STEP
    + """
import torch

def test_interrupted(amp_benchmark, setup):
    def interrupted(arm):
        step = setup(arm)
        torch.set_default_dtype(torch.float64)
        torch.autocast("cpu").__enter__()
        steps = iter(range(99))
        def one():
            if next(steps):
                raise KeyboardInterrupt
            return step()
        return one
    amp_benchmark(interrupted)

def test_never_reached(amp_benchmark):
    pass
"""
)


def test_ctrl_c_restores_what_is_global_and_reports_what_was_measured(
    project: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    project.makepyfile(test_it=INTERRUPTED)
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    drawn = random.getstate()
    run = project.inline_run("--amp-json=amp.json", *QUICK, no_reraise_ctrlc=True)
    assert run.ret == pytest.ExitCode.INTERRUPTED
    assert torch.get_default_dtype() is torch.float32
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_num_threads() == threads
    assert random.getstate() == drawn
    assert signal.getsignal(signal.SIGINT) is handler
    document = read(project)
    jsonschema.validate(document, schema())
    assert [test["nodeid"] for test in document["tests"]] == ["test_it.py::test_step"]
    shown = capsys.readouterr().out
    assert "= pytest-amp =" in shown
    assert "KeyboardInterrupt" in shown


ENDLESS = (
    STEP
    + """
import time
from pathlib import Path

@pytest.mark.amp(steps=100_000)
def test_endless(amp_benchmark, setup):
    def slow(arm):
        step = setup(arm)
        def one():
            Path(__file__).with_name("running").touch()
            time.sleep(0.02)
            return step()
        return one
    amp_benchmark(slow)
"""
)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="Ctrl-C is ignored, as behind nohup"
)
def test_a_real_signal_in_mid_measurement_leaves_a_table_a_report_and_no_lock(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=ENDLESS)
    command = [sys.executable, "-m", "pytest", "--amp-json=amp.json", *TIMED]
    running = project.path / "running"
    with subprocess.Popen(
        command, cwd=project.path, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not running.exists():
                assert process.poll() is None, "it ended before it measured"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            shown = process.communicate(timeout=60)[0]
        finally:
            process.kill()  # or a failure would wait for ever
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in shown
    assert "= pytest-amp =" in shown
    jsonschema.validate(read(project), schema())
    assert [test["nodeid"] for test in read(project)["tests"]] == ["test_it.py::test_step"]
    # It would wait for ever for a lock left behind.
    result, _ = measure(project, "-k", "step", quick=TIMED)
    result.assert_outcomes(passed=1)


# Projects that have pytest-amp installed and don't use it

LISTING = """
import json, sys
from pathlib import Path

def pytest_unconfigure(config):
    Path(__file__).with_name("modules.json").write_text(json.dumps(sorted(sys.modules)))
"""


def modules_after(project: pytest.Pytester, *arguments: str) -> set[str]:
    result = project.runpytest_subprocess(*arguments)
    assert result.ret == pytest.ExitCode.OK
    found: list[str] = json.loads((project.path / "modules.json").read_text())
    return set(found)


@pytest.mark.parametrize("arguments", [(), ("-p", "no:benchmark"), ("--co",), ("--markers",)])
def test_a_run_without_amp_tests_loads_nothing_on_our_account(
    pytester: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    pytester.makeconftest(LISTING)
    pytester.makepyfile("def test_other(): pass")
    with_us = modules_after(pytester, *arguments)
    without_us = modules_after(pytester, "-p", "no:amp", *arguments)
    packages = {name.partition(".")[0] for name in with_us - without_us}
    assert packages - set(sys.stdlib_module_names) == {"pytest_amp"}


def test_collecting_amp_tests_loads_no_torch(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(LISTING)
    pytester.makepyfile("def test_it(amp_benchmark, cuda_device): pass")
    loaded = modules_after(pytester, "--co", "--amp-strict", "--amp-min-speedup=1.3")
    assert not loaded & {"torch", "numpy", "pandas", "filelock"}


def test_an_amp_test_that_is_marked_to_be_skipped_loads_no_torch(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(LISTING)
    pytester.makepyfile(
        "import pytest\n@pytest.mark.skip\ndef test_it(amp_benchmark): pass\n"
        "@pytest.mark.amp\n@pytest.mark.skipif(True, reason='no')\ndef test_step(): pass"
    )
    assert not modules_after(pytester) & {"torch", "numpy", "pandas"}
