"""Read the system's counters of what other work takes from this process.

They are read between blocks, which takes a tenth of a millisecond, and longer with many threads.
What a system does not count is None.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pytest_amp.observations import Disturbance

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # Windows
    getrusage = None  # type: ignore[assignment]

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
# The columns of /proc/stat in which a processor works: user, nice, system, irq and softirq.
_WORKING = (1, 2, 3, 6, 7)
_STOLEN = 8


class Counters(NamedTuple):
    """The counters at one moment, each since some moment in the past.

    Attributes:
        at_s: the moment.
        own_s: processor seconds of this process and its workers.
        busy_s: processor seconds of everybody, on the cores that this process may use.
        stolen_s: processor seconds that the hypervisor gave to other machines.
        waited_s: for each thread of this process, the seconds in which it waited for a processor.
        preemptions: involuntary context switches of this process.
        pressure_s: seconds in which somebody waited for a processor.
        throttled: periods in which the container's quota was used up.
        periods: periods of that quota.
    """

    at_s: float
    own_s: float
    busy_s: float | None
    stolen_s: float | None
    waited_s: Mapping[str, float]
    preemptions: int | None
    pressure_s: float | None
    throttled: int | None
    periods: int | None

    def since(self, before: Counters) -> Disturbance:
        """Return what was taken from this process since an earlier read."""

        def grown(now: float | None, then: float | None) -> float | None:
            return None if now is None or then is None else max(0.0, now - then)

        busy_s = grown(self.busy_s, before.busy_s)
        waited = [
            seconds - before.waited_s.get(thread, 0.0) for thread, seconds in self.waited_s.items()
        ]
        counts = {
            name: None if number is None else int(number)
            for name in ("preemptions", "throttled", "periods")
            for number in [grown(getattr(self, name), getattr(before, name))]
        }
        return Disturbance(
            wall_s=self.at_s - before.at_s,
            waited_s=max(waited, default=None),
            others_s=None if busy_s is None else busy_s - (self.own_s - before.own_s),
            stolen_s=grown(self.stolen_s, before.stolen_s),
            pressure_s=grown(self.pressure_s, before.pressure_s),
            **counts,
        )


def read() -> Counters:
    """Return the counters now."""
    busy_s, stolen_s = _processors_s()
    throttled, periods = _throttled()
    return Counters(
        at_s=time.perf_counter(),
        own_s=time.process_time() + _workers_s() + sum(os.times()[2:4]),  # the last: ended ones
        busy_s=busy_s,
        stolen_s=stolen_s,
        waited_s=_waits(),
        preemptions=None if getrusage is None else getrusage(RUSAGE_SELF).ru_nivcsw,
        pressure_s=_pressure_s(),
        throttled=throttled,
        periods=periods,
    )


def cores() -> float | None:
    """Return how many processors this process may use, a container's quota included."""
    allowed = processors()
    quota = _quota()
    return min(allowed or quota, quota) if quota is not None else allowed


def processors() -> int | None:
    """Return how many processors this process may run on, which others share; None if unknown."""
    return len(_allowed()) or None


def _allowed() -> frozenset[int]:
    """Return the numbers of the processors that a thread of this process may run on.

    OpenMP may have bound each thread to one of them.
    """
    if not hasattr(os, "sched_getaffinity"):
        return frozenset(range(os.cpu_count() or 0))
    found = set(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        for thread in (_PROC / "self" / "task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                found |= os.sched_getaffinity(int(thread.name))
    return frozenset(found)


def _processors_s() -> tuple[float | None, float | None]:
    """Return the busy and the stolen seconds of the processors that this process may run on."""
    ours = {f"cpu{number}" for number in _allowed()}
    rows = [
        [int(ticks) for ticks in columns[1:]]
        for line in _lines(_PROC / "stat")
        if (columns := line.split()) and columns[0] in ours
    ]
    if not rows or len(rows[0]) < _STOLEN:
        return None, None
    ticks_to_a_second = os.sysconf("SC_CLK_TCK")
    busy = sum(row[column - 1] for row in rows for column in _WORKING)
    stolen = sum(row[_STOLEN - 1] for row in rows)
    return busy / ticks_to_a_second, stolen / ticks_to_a_second


def _workers_s() -> float:
    """Return the processor seconds of worker processes, such as a DataLoader's, that still run."""
    total = 0.0
    for worker in multiprocessing.active_children():
        line = " ".join(_lines(_PROC / str(worker.pid) / "stat")).rpartition(")")[2].split()
        if len(line) > 12:
            total += (int(line[11]) + int(line[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _waits() -> dict[str, float]:
    """Return how long each thread of this process has waited for a processor, in seconds."""
    found = {}
    with contextlib.suppress(OSError):
        for thread in (_PROC / "self" / "task").iterdir():
            columns = " ".join(_lines(thread / "schedstat")).split()
            if len(columns) > 1:
                found[thread.name] = int(columns[1]) / 1e9
    return found


def _pressure_s() -> float | None:
    for line in _lines(_PROC / "pressure" / "cpu"):
        if line.startswith("some"):
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def _throttled() -> tuple[int | None, int | None]:
    """Return in how many periods a quota was used up, and how many there were."""
    found = dict(
        line.split()[:2]
        for path in (_CGROUP / "cpu.stat", _CGROUP / "cpu" / "cpu.stat")
        for line in _lines(path)
        if line.startswith(("nr_throttled ", "nr_periods "))
    )
    throttled, periods = found.get("nr_throttled"), found.get("nr_periods")
    if throttled is None or periods is None:
        return None, None
    return int(throttled), int(periods)


def _quota() -> float | None:
    """Return the processors that a container's quota comes to; None without one."""
    both = " ".join(_lines(_CGROUP / "cpu.max")).split() or [
        "".join(_lines(_CGROUP / "cpu" / name))
        for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    ]
    try:
        quota, period = (float(each) for each in both)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 and math.isfinite(quota) else None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel's; none if it can't be read."""
    try:
        with path.open("rb", buffering=0) as file:  # faster than read_text
            return file.read().decode("ascii", "replace").splitlines()
    except OSError:
        return []
