"""Saved runs as pytest-benchmark writes them, without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import ArmRun, Environment, Estimate, Gate, Setting

MACHINE = "Linux-CPython-3.11-64bit"
ENVIRONMENT = Environment(
    "NVIDIA H100", "cuda", "2.13.0", "12.8", "91002", "570.1", "bfloat16", True,
    {"cudnn.benchmark": False},
)  # fmt: skip
SETTINGS = {name: Setting(value, "default") for name, value in
            {"steps": 20, "warmup": 3, "seed": 0, "strict": []}.items()}  # fmt: skip


def report(
    nodeid: str = "test_it.py::test_step",
    speedup: float = 2.0,
    amp_s: float = 0.005,
    day: int = 1,
    loss: float = 1.0,
    peaks: tuple[int, int] = (1000, 600),
    **more: Any,
) -> AmpReport:
    """Return the report of a test that passed on that day of January 2026."""
    ratios = (speedup * 0.99, speedup, speedup * 1.01)
    usual = AmpReport(
        nodeid=nodeid,
        verdict="pass",
        started=f"2026-01-{day:02}T12:00:00+00:00",
        duration_s=4.0,
        environment=ENVIRONMENT,
        settings=SETTINGS,
        gates=(Gate("speedup", 1.3, speedup, ratios[0], ratios[-1], "pass", "as wanted"),),
        arms={
            "fp32": ArmRun(tuple(amp_s * r for r in ratios), {"loss": (2.0, loss)}, peaks[0]),
            "amp": ArmRun((amp_s,) * 3, {"loss": (2.0, loss)}, peaks[1], skipped_steps=1),
        },
        speedup=Estimate(ratios, ratios[0], ratios[-1], 7),
        loss_diff=0.0,
        noise_floor=0.001,
        coverage=1.0,
    )
    return replace(usual, **more)


def document(
    *reports: AmpReport,
    branch: str = "main",
    run_id: str = "a" * 32,
    dirty: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return what pytest-benchmark's storage holds about a run."""
    entries = []
    for each in reports:
        plain = each.to_dict()
        for arm in ("fp32", "amp"):
            name = f"{each.nodeid}[{arm}]"
            stats = {"mean": 1.0, "ops": 1.0}
            extra = {"extra_info": {"amp": plain}}
            entries.append({"name": name, "fullname": name, "stats": stats, **extra})
    commit = {"id": "c" * 40, "branch": branch, "dirty": dirty}
    return {
        "machine_info": {"node": "runner"},
        "commit_info": commit,
        "benchmarks": entries,
        "datetime": "2026-01-01T12:00:00+00:00",
        "amp": {"run": {"id": run_id, "commit": commit["id"], "branch": branch, "dirty": dirty}},
        **more,
    }


def save(root: Path, number: int, content: Mapping[str, Any] | str) -> Path:
    """Write it as run `number` into the storage."""
    folder = root / MACHINE
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:04}_run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path
