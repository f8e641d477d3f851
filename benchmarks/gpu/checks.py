"""The register of checks, and what runs a group of them: one line of JSON for each."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import signal
import time
import traceback
import warnings
from pathlib import Path

MODULES = ("first_use", "timing", "memory", "rules", "switches", "compiled", "policy")
CHECKS = {}  # group -> [(name, function, needs_cuda, seconds)]


def check(group, needs_cuda=True, seconds=30):
    """Register a check; it returns its verdict and what it saw, within so many seconds."""

    def register(function):
        CHECKS.setdefault(group, []).append((function.__name__, function, needs_cuda, seconds))
        return function

    return register


class TooLong(BaseException):
    """A check has used its time."""


def emit(name, verdict, **values):
    print(json.dumps({"check": name, "verdict": verdict, **_plain(values)}), flush=True)


def _plain(value):
    """What JSON can hold, floats in five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (int, bool, str, type(None))) else str(value)


def run_group(group, only, go):
    """Run a group's checks, or those that `only` names, once the file `go` is there."""
    for module in MODULES:
        importlib.import_module(f"benchmarks.gpu.{module}")
    while go and not Path(go).exists():  # imported ahead, while another group has the device
        time.sleep(0.02)
    on_cuda = os.environ["GPU_CHECK_DEVICE"] == "cuda"
    forced = bool(os.environ.get("GPU_CHECK_FORCE"))  # to find slips without a GPU
    for name, function, needs_cuda, seconds in CHECKS[group]:
        if only and name not in only and group not in only:
            continue
        if needs_cuda and not on_cuda and not forced:
            emit(name, "skipped", why="needs CUDA")
            continue
        _run(name, function, seconds)
        if on_cuda:
            _clean_up()


def _run(name, function, seconds):
    began = time.perf_counter()

    def alarm(*_):
        raise TooLong

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, values = function()
        emit(name, verdict, s=round(time.perf_counter() - began, 1), **values)
    except TooLong:
        emit(name, "error", why=f"over {seconds} s")
    except BaseException as error:  # noqa: BLE001 - told in its line
        frames = traceback.extract_tb(error.__traceback__)
        emit(
            name,
            "error",
            why=f"{type(error).__name__}: {str(error)[:300]}",
            at=[f"{Path(each.filename).name}:{each.lineno}" for each in frames][-6:],
            notes=list(getattr(error, "__notes__", []))[:3],
        )
    finally:
        signal.alarm(0)


def _clean_up():
    import torch

    with contextlib.suppress(Exception):
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        torch.cuda.empty_cache()
