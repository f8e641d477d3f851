"""The system's counters, as this one has them, and as others write them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from pytest_amp.lab.machine import contention
from pytest_amp.lab.machine.device import Device
from pytest_amp.results.report import AmpReport
from tests.helpers.lab import SimulatedDevice, measure

STAT = """\
cpu  1000 0 0 9000 0 0 0 0 0 0
cpu0 {busy} 10 20 9000 5 1 2 {stolen} 30 0
cpu1 40 0 0 9000 0 0 0 4 0 0
cpu12 77777 0 0 9000 0 0 0 4 0 0
intr 12345 1 2 3
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of two processors for us, whose counters are the files in this folder."""
    for folder in ("proc/self/task/7", "proc/self/task/8", "proc/pressure", "cgroup"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(contention, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(contention, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(contention, "_allowed", lambda: frozenset({0, 1}))
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(time, "process_time", lambda: 1.0)
    return tmp_path


def write(proc: Path, busy: int = 100, stolen: int = 3, waits: tuple[int, int] = (0, 0)) -> None:
    (proc / "proc/stat").write_text(STAT.format(busy=busy, stolen=stolen))
    for thread, wait in zip((7, 8), waits, strict=True):
        (proc / f"proc/self/task/{thread}/schedstat").write_text(f"5000000 {wait} 12\n")
    (proc / "proc/pressure/cpu").write_text(
        f"some avg10=0.00 avg60=0.00 avg300=0.00 total={10 * busy}\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )
    (proc / "cgroup/cpu.stat").write_text(f"usage_usec 1\nnr_periods 500\nnr_throttled {busy}\n")


def test_what_grew_between_two_reads_was_taken(proc: Path) -> None:
    write(proc)
    before = contention.read()
    write(proc, busy=250, stolen=53, waits=(20_000_000, 30_000_000))
    taken = contention.read().since(before)
    assert taken.others_s == pytest.approx(1.5)
    assert taken.stolen_s == pytest.approx(0.5)
    assert taken.waited_s == pytest.approx(0.03)
    assert taken.pressure_s == pytest.approx(0.0015)
    assert (taken.throttled, taken.periods) == (150, 0)
    assert taken.wall_s > 0
    assert taken.preemptions is not None


def test_own_time_is_nobody_elses(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(proc)
    before = contention.read()
    write(proc, busy=250)
    monkeypatch.setattr(time, "process_time", lambda: 2.2)
    assert contention.read().since(before).others_s == pytest.approx(0.3)


def test_workers_are_nobody_else_either(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        pid = 99

    (proc / "proc/99").mkdir()
    worker = proc / "proc/99/stat"
    worker.write_text("99 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 100 50 0 0")
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [Worker()])
    write(proc)
    before = contention.read()
    worker.write_text("99 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 160 70 0 0")
    write(proc, busy=250)
    assert contention.read().since(before).others_s == pytest.approx(1.5 - 0.8)


def test_a_worker_that_has_ended_counts_nothing(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        pid = 98

    monkeypatch.setattr(multiprocessing, "active_children", lambda: [Gone()])
    write(proc)
    assert contention.read().own_s == pytest.approx(1.0 + sum(os.times()[2:4]), abs=0.1)


def test_a_system_that_counts_nothing_is_no_error(proc: Path) -> None:
    for folder in ("proc", "cgroup"):
        (proc / folder).rename(proc / f"no-{folder}")
    before = contention.read()
    taken = contention.read().since(before)
    assert (taken.others_s, taken.stolen_s, taken.waited_s) == (None, None, None)
    assert (taken.pressure_s, taken.throttled, taken.periods) == (None, None, None)


def test_a_thread_that_began_meanwhile_counts_from_its_start(proc: Path) -> None:
    write(proc)
    (proc / "proc/self/task/8/schedstat").unlink()
    before = contention.read()
    write(proc, waits=(1_000_000, 4_000_000))
    assert contention.read().since(before).waited_s == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 2.0),
        ({"cpu.max": "max 100000\n"}, 2.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "800000 100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu.max": "nonsense"}, 2.0),
    ],
)
def test_a_containers_quota_counts_as_processors(proc: Path, files, cores: float) -> None:
    for name, text in files.items():
        path = proc / "cgroup" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert contention.cores() == cores


def test_the_first_version_of_control_groups_counts_likewise(proc: Path) -> None:
    (proc / "cgroup/cpu").mkdir()
    (proc / "cgroup/cpu/cpu.stat").write_text("nr_periods 12\nnr_throttled 3\nthrottled_time 25\n")
    found = contention.read()
    assert (found.throttled, found.periods) == (3, 12)


def test_a_worker_that_ended_meanwhile_was_nobody_else(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(proc)
    monkeypatch.setattr(os, "times", lambda: (1.0, 0.0, 0.0, 0.0, 5.0))
    before = contention.read()
    write(proc, busy=250)
    monkeypatch.setattr(os, "times", lambda: (1.0, 0.0, 0.7, 0.3, 7.0))
    assert contention.read().since(before).others_s == pytest.approx(0.5)


# On this system.


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_here_the_counters_are_there_and_never_run_backwards() -> None:
    before = contention.read()
    threads = [threading.Thread(target=sum, args=(range(300_000),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = contention.read().since(before)
    assert taken.preemptions is not None
    assert taken.preemptions >= 0
    assert taken.others_s is not None
    assert taken.wall_s > 0
    assert contention.cores() >= 1


def test_a_timed_test_has_them_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "counters", lambda _: contention.read())
    device = SimulatedDevice()
    report = measure(device.steps(0.01, 0.005), device, static=False, min_speedup=1.5)
    assert report.contention.arms["amp"].blocks == report.speedup.pairs
    assert report.contention.cores == contention.cores()
    assert report.contention.processors == contention.processors()
    written = AmpReport.from_dict(report.to_dict()).contention
    assert written == report.contention
