"""`pytest-amp tune`: what it prints, its exit codes, and the marker that it offers."""

from __future__ import annotations

import sys

import pytest

from pytest_amp.cli import main as cli
from pytest_amp.cli import tune
from pytest_amp.cli.console import INTERRUPTED
from tests.helpers.clock import CLOCK

pytestmark = pytest.mark.needs("optuna")

STEPS = """
import pytest
from tests.helpers.clock import CLOCK

MS = {"fp16": 4, "bf16": 6}
STEPS = []

@pytest.mark.amp(steps=4, max_time=3, max_loss_diff=0.05, dtype="bfloat16")
def test_step(amp_benchmark):
    def setup(arm):
        size = arm.suggest("batch_size", (8, 16))
        def step():
            CLOCK.time_s += MS.get(str(arm.recipe), 10) / 1000 * (8 + size) / 16
            return 1.0
        return step
    result = amp_benchmark(setup)
    assert result.verdict == "pass"

def test_broken(amp_benchmark):
    def setup(arm):
        def step():
            raise RuntimeError("no kernel")
        return step
    amp_benchmark(setup)

def test_interrupted(amp_benchmark):
    def setup(arm):
        def step():
            CLOCK.time_s += MS.get(str(arm.recipe), 10) / 1000
            STEPS.append(str(arm.recipe))
            if STEPS[-2:] == ["fp16", "fp16"]:
                raise KeyboardInterrupt
            return 1.0
        return step
    amp_benchmark(setup)

def test_plain():
    pass
"""
SMALL = ("--only", "recipe=bf16,fp16", "--only", "compile=no", "--only", "channels_last=no",
         "--only", "init_scale=1024", "--only", "growth_interval=2000")  # fmt: skip


@pytest.fixture
def tuned(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Tune a test of a file; the exit code, and the lines on both streams."""
    monkeypatch.chdir(pytester.path)
    monkeypatch.setattr("pytest_amp.lab.machine.device.Device.now", lambda _: CLOCK.time_s)
    pytester.makepyfile(test_it=STEPS)

    def run(*arguments, test="test_it.py::test_step"):
        code = cli.main(["tune", test, *arguments, "--", "-p", "no:asyncio"])
        return code, "\n".join(capsys.readouterr())

    return run


def test_each_trial_is_a_line_and_the_fastest_is_a_marker_to_paste(tuned) -> None:
    code, said = tuned(*SMALL)
    assert code == tune.FOUND
    head, *lines = said.splitlines()
    assert head.startswith("tuning on ")
    assert head.endswith(", against fp32")
    assert lines[:2] == ["  recipe: bf16, fp16", "  batch_size: 8, 16"]
    assert lines[2].startswith("  not tried: tf32, because a CPU has no TF32")
    assert lines[3].split()[:4] == ["0", "bf16", "batch_size=8", "750"]
    assert lines[3].endswith("  fastest so far")
    assert "nothing is left to try" in lines
    table = lines[next(i for i, line in enumerate(lines) if "4 trials in " in line) + 1 :]
    assert table[0].split()[1:5] == ["fp16", "init_scale=1024", "batch_size=16", "375"]
    assert "2.50x [2.50, 2.50]" in table[0]
    where = table.index("to adopt fp16 init_scale=1024 batch_size=16, mark the test")
    assert table[where + 1 : where + 3] == [
        (
            "  @pytest.mark.amp(max_loss_diff=0.05, steps=4, max_time=3.0, candidate='fp16', "
            "init_scale=1024.0)"
        ),
        "and offer 16 first in arm.suggest('batch_size', ...)",
    ]


def test_the_marker_can_be_pasted(pytester: pytest.Pytester, tuned) -> None:
    _, said = tuned(*SMALL)
    [marker] = [line for line in said.splitlines() if "@pytest.mark.amp(" in line]
    old = next(line for line in STEPS.splitlines() if line.startswith("@pytest.mark"))
    pytester.makepyfile(test_it=STEPS.replace(old, marker.strip()))
    result = pytester.runpytest("-k", "test_step", "--amp-static", "--amp-json=amp.json")
    result.assert_outcomes(passed=1, deselected=3)
    assert '"init_scale": {' in (pytester.path / "amp.json").read_text()


def test_a_test_that_is_the_fastest_as_it_is_stays_so(tuned) -> None:
    code, said = tuned("--only", "recipe=bf16", *SMALL[2:], "--only", "batch_size=8")
    assert code == tune.FOUND
    assert "the test is the fastest as it is: bf16 batch_size=8" in said
    assert "@pytest.mark" not in said


def test_where_nothing_passes_there_is_nothing_to_adopt(tuned) -> None:
    code, said = tuned(*SMALL, test="test_it.py::test_broken")
    assert code == tune.NOTHING_TO_ADOPT
    assert said.count("raised RuntimeError: no kernel") == 2
    assert "2 trials in" in said
    assert "2 raised, so nothing is to adopt" in said


def test_an_interrupted_tuning_is_resumed(tuned) -> None:
    code, said = tuned(*SMALL, "--storage", "tune.log", test="test_it.py::test_interrupted")
    assert code == INTERRUPTED
    assert "interrupted after 1 trial; go on with the same --storage tune.log" in said
    assert "@pytest.mark" not in said  # bf16 is what it has
    code, said = tuned(
        *SMALL, "--storage", "tune.log", "--trials=1", test="test_it.py::test_interrupted"
    )
    assert "the study has 1 trial already" in said
    assert code == tune.FOUND


def test_it_runs_where_every_warning_is_an_error(pytester: pytest.Pytester) -> None:
    """In a process of its own, where this package is imported before pytest is."""
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makepyfile(test_it="def test_plain(): pass")
    command = [sys.executable, "-m", "pytest_amp.cli", "tune", "test_it.py::test_plain"]
    result = pytester.run(*command, "--", "-p", "no:asyncio")
    assert result.ret == tune.USAGE
    result.stdout.fnmatch_lines(["*1 passed*", "*did not run as one amp test; see above"])
    assert "Traceback" not in result.stderr.str()


def test_what_is_slower_than_the_reference_is_not_to_be_adopted(tuned, pytester) -> None:
    slower = STEPS.replace('"bf16": 6', '"bf16": 20').replace("max_time=3", "max_time=6")
    pytester.makepyfile(test_it=slower)
    code, said = tuned("--only", "recipe=bf16", *SMALL[2:], "--only", "batch_size=8")
    assert code == tune.NOTHING_TO_ADOPT
    assert "nothing that passed is faster than fp32: bf16 batch_size=8 is 0.50x" in said
    assert "@pytest.mark" not in said


def test_a_speed_gate_that_the_fastest_misses_is_told(tuned, pytester) -> None:
    pytester.makepyfile(test_it=STEPS.replace("(steps=4", "(min_speedup={'cpu': 3.0}, steps=4"))
    code, said = tuned(*SMALL)
    assert code == tune.FOUND
    assert "the test's own min_speedup=3.00x is not met for sure: 2.50x" in said


def test_the_marker_beats_what_the_ini_file_has(tuned, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\namp_init_scale = 64")
    _, said = tuned(*SMALL)
    assert "init_scale=1024.0)" in said


def test_the_project_s_own_reports_and_cache_stay_as_they_are(tuned, pytester) -> None:
    pytester.makeini("[pytest]\naddopts = --amp-json=kept.json --junitxml=kept.xml --ff")
    for name in ("kept.json", "kept.xml"):
        (pytester.path / name).write_text("kept")
    code, _ = tuned(*SMALL)
    assert code == tune.FOUND
    assert {(pytester.path / name).read_text() for name in ("kept.json", "kept.xml")} == {"kept"}
    assert not (pytester.path / ".pytest_cache").exists()


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("test_it.py::test_plain", "test_plain did not run as one amp test; see above"),
        ("test_it.py", "that is 3 amp tests (test_it.py::test_step, "),
        ("test_it.py::test_nowhere", "did not run as one amp test"),
    ],
)
def test_what_can_t_be_tuned_is_a_usage_error(tuned, test: str, message: str) -> None:
    code, said = tuned(test=test)
    assert code == tune.USAGE
    assert message in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "recipe"], "--only recipe: write NAME=VALUE,VALUE"),
        (["--only", "recipe=fp9"], "'fp9' is not a recipe"),
        (["--only", "batch_size=9"], "--only batch_size=9: the setup offers 8, 16"),
        (["--storage", "no/such/tune.log"], "--storage no/such/tune.log: "),
    ],
)
def test_a_wrong_argument_is_told_before_anything_runs(tuned, arguments, message) -> None:
    code, said = tuned(*arguments)
    assert code == tune.USAGE
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("argument", ["--trials=0", "--trials=x", "--timeout=0", "--timeout=nan"])
def test_a_number_that_makes_no_sense_is_refused(tuned, argument: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        tuned(argument)
    assert ended.value.code == 2
    assert "is not a" in capsys.readouterr().err


@pytest.mark.needs("matplotlib")
def test_the_plots_are_drawn(tuned, pytester: pytest.Pytester) -> None:
    code, said = tuned(*SMALL, "--plots", "deep/plots")
    assert code == tune.FOUND
    for name in ("history", "parallel-coordinate"):
        path = pytester.path / "deep" / "plots" / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"drawn: deep/plots/{name}.png" in said
