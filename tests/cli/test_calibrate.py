"""`pytest-amp calibrate`: what it measures, prints and returns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_amp.cli import main as cli
from pytest_amp.errors import AmpError
from pytest_amp.experiment import calibrate as experiment
from pytest_amp.experiment.calibrate import Wanted, calibrate
from pytest_amp.experiment.job import Job
from pytest_amp.judge.calibration import Calibration
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.phases import planted
from pytest_amp.observations import Timing
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve
from tests.helpers.clock import CLOCK
from tests.helpers.lab import CPU, SimulatedDevice

Captured = pytest.CaptureFixture[str]
Calibrated = Callable[..., tuple[int, str]]

STEP = """
import pytest
from tests.helpers.clock import CLOCK

@pytest.mark.amp(steps=2)
def test_step(amp_benchmark):
    def setup(arm):
        def step():
            CLOCK.time_s += 0.01
            return 1.0
        return step
    amp_benchmark(setup)

@pytest.mark.amp
def test_raises(amp_benchmark):
    def setup(arm):
        raise OSError("no such data")
    amp_benchmark(setup)
"""


@pytest.fixture
def calibrated(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> Calibrated:
    monkeypatch.setattr(Device, "now", lambda _: CLOCK.time_s)
    # Planted work moves the clock as well, by what a call of it is said to take.
    monkeypatch.setattr(planted, "_seconds_of", lambda *_: 1e-5)
    monkeypatch.setattr(planted, "_work_on", lambda _: _tick)
    pytester.makepyfile(test_it=STEP)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(["calibrate", *arguments])
        out, err = capsys.readouterr()
        return code, out + err

    return run


def _tick() -> None:
    CLOCK.time_s += 1e-5


def test_the_table_and_what_to_choose(calibrated: Calibrated) -> None:
    code, said = calibrated("test_it.py::test_step", "--trials", "2", "--", "-p", "no:asyncio")
    assert code == 0
    assert "calibrating on" in said
    assert "2 trials of 5 kinds, 30.0 s at most" in said
    rows = [line.split() for line in said.splitlines() if line.strip().endswith("ms")]
    assert [row[0] for row in rows] == ["2.0%", "5.0%", "10%", "20%"]
    assert [row[:8] for row in rows][1] == ["5.0%", "5.0%", "2", "0", "0", "2", "0", "0"]
    assert "0 of 16 answers wrong; error_rate 0.01 allows 0.2" in said
    assert "the smallest difference that is found reliably: 2.0%, after 9 pairs" in said
    assert "so set min_speedup 0.99% below the speedup that you measure" in said


def test_a_test_that_raises_is_told(calibrated: Calibrated) -> None:
    code, said = calibrated("test_it.py::test_raises", "--", "-p", "no:asyncio")
    assert code == 2
    assert "no such data" in said
    assert "pytest-amp calibrate: test_it.py::test_raises ended in an error; see above" in said


def test_without_a_test_it_takes_a_small_step_of_its_own(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(experiment, "calibrate", lambda job, *_: asked.append(job.nodeid))
    code, said = calibrated("--trials", "1")
    assert (code, asked) == (0, ["a small step of its own"])
    assert said.endswith("no trial came to its end\n")


def test_arguments_for_pytest_need_a_test(calibrated: Calibrated) -> None:
    code, said = calibrated("--", "--amp-device=cuda:7")
    assert code == 2
    assert "arguments for pytest need a test" in said


def test_what_can_t_be_timed_is_told(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = calibrated("--trials", "1")
    assert code == 2
    assert "pytest-amp: calibrate: timed runs on several ranks" in said


def test_ctrl_c_shows_what_there_is(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "calibrate", interrupted)
    code, said = calibrated()
    assert code == 130
    assert "no trial came to its end" in said


@pytest.mark.parametrize(
    "arguments", [("--trials", "0"), ("--trial-time", "-1"), ("--trials", "x")]
)
def test_a_number_that_is_none_is_refused(calibrated: Calibrated, arguments) -> None:
    with pytest.raises(SystemExit) as ended:
        calibrated(*arguments)
    assert ended.value.code == 2


def test_each_trial_has_another_order_and_arms_of_its_own() -> None:
    device, builds = SimulatedDevice(), []

    def setup(arm):
        builds.append(arm.name)
        return device.steps(0.01, 0.01)(arm)

    found = Calibration((), 0.01)
    job = Job("test_it.py::test", setup, device, resolve([]))
    calibrate(job, Progress(), Wanted(2, 0.2, ()), found)
    assert builds == ["amp"] * 4
    assert len(found.trials[0.0]) == 2


def test_a_scaler_that_skips_every_pair_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = Timing((), (), 1, "budget", 3.0, skipping_pairs=12)
    monkeypatch.setattr(experiment.timing, "run", lambda *_: skipped)
    job = Job("test_it.py::test", lambda _: lambda: 1.0, SimulatedDevice(), resolve([]))
    with pytest.raises(AmpError, match="skipped steps in every pair of blocks"):
        calibrate(job, Progress(), Wanted(), Calibration((0.1,), 0.01))


def test_planted_work_is_as_many_calls_as_take_that_long(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(planted, "_seconds_of", lambda *_: 1e-5)
    monkeypatch.setattr(planted, "_work_on", lambda _: lambda: done.append("work"))

    def setup(_: object) -> Callable[[], float]:
        return lambda: float(len(done))

    class Own:
        device = CPU

    step = planted.slower_by(0.002)(setup)(Own())
    assert (step(), len(done)) == (0.0, 200)
    assert planted.slower_by(0.0)(setup)(Own())() == 200.0


def test_a_call_of_planted_work_has_a_length() -> None:
    assert 0 < planted._seconds_of(planted._work_on(CPU), Device(CPU)) < 1
