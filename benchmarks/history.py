"""What the history costs on a large storage, beside pytest-benchmark's own commands on it.

Makes a storage of so many runs, or takes one that is there, and times each command in a process of
its own: cold (no index, files in the page cache) and warm.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import ArmRun, Environment, Estimate, Gate, Setting
from pytest_amp.settings.table import TABLE

MACHINE = "Linux-CPython-3.11-64bit"
BEGAN = datetime(2020, 1, 1, tzinfo=timezone.utc)


def report(test, began, draw):
    amp_s = 0.005 * draw.lognormvariate(0, 0.01)
    ratios = tuple(2.0 * draw.lognormvariate(0, 0.01) for _ in range(9))
    curve = tuple(2.3 * 0.97**step for step in range(20))
    arms = {
        "fp32": ArmRun(tuple(amp_s * each for each in ratios), {"loss": curve}, 2**30, 2**31),
        "amp": ArmRun((amp_s,) * 9, {"loss": curve}, 2**29, 2**30, {"bfloat16": 10**9}),
    }
    environment = Environment(
        "NVIDIA H100 80GB HBM3", "cuda", "2.13.0", "12.8", "91002", "570.1", "bfloat16", True,
        {"cuda.matmul.allow_tf32": False, "cudnn.benchmark": False},
    )  # fmt: skip
    return AmpReport(
        nodeid=f"tests/test_models.py::test_model_{test}",
        verdict="pass" if draw.random() < 0.95 else "fail",
        started=began.isoformat(timespec="seconds"),
        duration_s=4.0,
        environment=environment,
        settings={each.name: Setting(None, "default") for each in TABLE},
        gates=(Gate("speedup", 1.3, ratios[0], min(ratios), max(ratios), "pass", "as wanted"),),
        arms=arms,
        speedup=Estimate(ratios, min(ratios), max(ratios), 12),
        loss_diff=0.001,
        coverage=1.0,
    ).to_dict()


def saved(began, tests, draw):
    entries = []
    for test in range(tests):
        plain = report(test, began, draw)
        for arm in ("fp32", "amp"):
            times = plain["arms"][arm]["step_times_s"]
            names = ("min", "max", "mean", "median", "iqr", "q1", "q3", "ld15iqr", "hd15iqr")
            stats = {**dict.fromkeys(names, times[0]), "stddev": 0.0, "rounds": 9, "ops": 1.0}
            more = {"iqr_outliers": 0, "stddev_outliers": 0, "outliers": "0;0", "total": 1.0}
            entries.append(
                {
                    "group": None,
                    "name": f"test_model_{test}[{arm}]",
                    "fullname": f"{plain['nodeid']}[{arm}]",
                    "params": {"arm": arm},
                    "param": None,
                    "extra_info": {"amp": plain},
                    "options": {},
                    "stats": {**stats, **more, "iterations": 12},
                }
            )
    return {
        "machine_info": {"node": "runner", "cpu": {"brand_raw": "some CPU"}},
        "commit_info": {"id": "0" * 40, "branch": "main", "dirty": False},
        "benchmarks": entries,
        "datetime": began.isoformat(),
        "version": "5.3.1",
        "amp": {"run": {"id": f"{draw.getrandbits(128):032x}", "commit": "0" * 40,
                        "branch": "main", "dirty": False, "started": began.isoformat()}},
    }  # fmt: skip


def make(root, runs, tests):
    folder, draw = root / MACHINE, random.Random(0)
    folder.mkdir(parents=True)
    for run in range(runs):
        document = saved(BEGAN + timedelta(hours=run), tests, draw)
        (folder / f"{run + 1:04}_run.json").write_text(json.dumps(document, indent=1))


GATES = """
import json, pathlib, sys, time
reports = json.loads(sys.stdin.read())
began = time.perf_counter()
from pytest_amp.record.baseline import Baselines
from pytest_amp.results import AmpReport
baselines = Baselines(pathlib.Path(sys.argv[1]))
for report in reports:
    baselines.of(AmpReport.from_dict(report))
print(time.perf_counter() - began)
"""
FRAME = """
import sys, time
began = time.perf_counter()
import pytest_amp
frame = pytest_amp.history(sys.argv[1])
print(time.perf_counter() - began, file=sys.stdout)
assert len(frame) == int(sys.argv[2]), len(frame)
"""
COMMAND = """
import contextlib, io, sys, time
began = time.perf_counter()
from pytest_amp import cli
with contextlib.redirect_stdout(io.StringIO()):
    assert cli.main(["history", "--storage", sys.argv[1]]) == 0
print(time.perf_counter() - began)
"""
THEIRS = """
import sys, time, types
began = time.perf_counter()
from pytest_benchmark.storage.file import FileStorage
log = types.SimpleNamespace(info=print, warning=print)
runs = list(FileStorage(sys.argv[1], log, sys.argv[2]).load())
print(time.perf_counter() - began)
"""


def timed(code, *arguments, given=""):
    """Seconds as the code prints them, and the process's peak memory in MiB."""
    wrapped = f"{code}\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run(
        [sys.executable, "-c", wrapped, *map(str, arguments)],
        input=given, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, kib = done.stdout.split()[-2:]
    return float(seconds), int(kib) / 1024


def line(name, measured, wanted=""):
    seconds = statistics.median(each[0] for each in measured)
    peak = max(each[1] for each in measured)
    print(f"{name:<58} {seconds:7.2f} s {peak:6.0f} MiB  {wanted}".rstrip(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--tests", type=int, default=10)
    parser.add_argument("--storage", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.storage or Path(temporary) / "store"
        if not root.exists():
            make(root, given.runs, given.tests)
        paths = list(root.glob("*/*.json"))
        size = sum(path.stat().st_size for path in paths)
        print(f"{len(paths)} runs x {given.tests} tests, {size / 2**20:.0f} MiB")
        now = BEGAN + timedelta(hours=given.runs)
        reports = [report(each, now, random.Random(0)) for each in range(given.tests)]
        one, all_ = json.dumps(reports[:1]), json.dumps(reports)
        rows = given.runs * given.tests
        line("pytest-benchmark: loading all runs (bare --benchmark-compare)",
             [timed(THEIRS, root, MACHINE)])  # fmt: skip
        (root / ".amp-index.sqlite").unlink(missing_ok=True)
        line("pytest_amp.history(), cold", [timed(FRAME, root, rows)])
        line("pytest_amp.history(), warm", [timed(FRAME, root, rows) for _ in range(5)],
             "wanted <= 1.5 s, 400 MiB")  # fmt: skip
        line("pytest-amp history, its table and change points, warm",
             [timed(COMMAND, root) for _ in range(3)])  # fmt: skip
        line("finding a test's baseline, warm",
             [timed(GATES, root, given=one) for _ in range(5)], "wanted <= 0.3 s")  # fmt: skip
        line("finding all tests' baselines, warm",
             [timed(GATES, root, given=all_) for _ in range(5)])  # fmt: skip


if __name__ == "__main__":
    main()
