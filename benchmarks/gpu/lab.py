"""What the checks measure with: training steps, an arm by hand, and our own experiment."""

from __future__ import annotations

import contextlib
import math
import os
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job
from pytest_amp.judge import sequential
from pytest_amp.lab.machine import device as devices
from pytest_amp.lab.phases import parity, timing
from pytest_amp.lab.phases.timing import Plan
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.lab.workbench import Workbench
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipes
from pytest_amp.settings.resolved import resolve
from tests.helpers.lab import train

DEVICE = os.environ["GPU_CHECK_DEVICE"]
ON_CUDA = DEVICE == "cuda"
WHERE = devices.choose(DEVICE)
DEV = WHERE.torch


def measure(setup, **given):
    """One experiment, by the plugin's own engine; static unless told otherwise."""
    options = resolve([("cli", {"static": True, "steps": 8, **given})])
    return experiment.run(Job("gpu_check", setup, WHERE, options), Progress())


def workbench(setup, dtype):
    return Workbench(setup, WHERE, Recipes.autocast(dtype_name(dtype)), 0, Progress())


def sgd(*models, lr=1e-3):
    return torch.optim.SGD([p for m in models for p in m.parameters()], lr=lr)


def sync():
    if ON_CUDA:
        torch.cuda.synchronize()


def said(report):
    return {
        "verdict_of_test": report.verdict,
        "coverage": report.coverage,
        "findings": [f"{f.code} {f.severity}: {f.message[:140]}" for f in report.findings],
        "notes": [n[:160] for n in report.notes],
    }


def heavy(width=2048, layers=4, rows=None):
    width, rows = (width, rows or width) if ON_CUDA else (128, 128)

    def setup(arm):
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(arm.device)
        x = torch.randn(rows, width, device=arm.device)
        return train(arm, sgd(model), lambda: F.mse_loss(model(x), x))

    return setup


def tiny(arm):
    """Bound by the host: small kernels, many launches."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))).to(arm.device)
    x = torch.randn(32, 64, device=arm.device)
    return train(arm, sgd(model), lambda: model(x).float().square().mean())


class Pretend:
    """An arm by hand: plain autocast and torch's own GradScaler."""

    def __init__(self, enabled, dtype):
        self.name = "amp" if enabled else "fp32"
        self.enabled, self.dtype, self.device = enabled, dtype, DEV
        self.scaler = torch.amp.GradScaler(DEV.type, enabled=enabled and dtype is torch.float16)

    def autocast(self):
        return (
            torch.autocast(DEV.type, dtype=self.dtype) if self.enabled else contextlib.nullcontext()
        )


def by_hand(setup, enabled, dtype, seconds=1.0, per_block=10):
    """Median seconds per step of all blocks, and of each half; on a GPU by its own events."""
    torch.manual_seed(0)
    step = setup(Pretend(enabled, dtype))
    for _ in range(8):
        step()
    sync()
    blocks, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(blocks) < 6:
        if ON_CUDA:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(per_block):
                step()
            end.record()
            end.synchronize()
            blocks.append(begin.elapsed_time(end) / per_block / 1e3)
        else:
            began = time.perf_counter()
            for _ in range(per_block):
                step()
            blocks.append((time.perf_counter() - began) / per_block)
    half = len(blocks) // 2
    return median(blocks), median(blocks[:half]), median(blocks[half:])


def plan(seconds, warmup=3):
    return Plan(
        warmup,
        lambda timed: "budget" if timed.elapsed_s >= seconds and len(timed.ratios) >= 9 else None,
    )


def pairs(setup, dtype, sides, seconds):
    """The plugin's paired blocks; median ratio, interval at error rate 0.01, and more."""
    timed = timing.run(workbench(setup, dtype), plan(seconds), tuple(timing.Side(s) for s in sides))
    ratios = timed.ratios
    low, high = sequential.interval(ratios, 0.01) or (math.nan, math.nan)
    return timed, {
        "median": median(ratios),
        "low": low,
        "high": high,
        "half_width": (high - low) / 2,
        "pairs": len(ratios),
        "block_steps": timed.block_steps,
        "elapsed_s": timed.elapsed_s,
        "autocorrelation": sequential.autocorrelation(ratios),
        "one_resident": timed.one_resident,
        "skipping_pairs": timed.skipping_pairs,
        "step_ms": [median(timed.fp32_step_s) * 1e3, median(timed.amp_step_s) * 1e3],
    }


def peak(setup, name, dtype, steps=5):
    record, _ = parity.run(workbench(setup, dtype), name, steps)
    return record


def secs(gpu, cpu=0.5):
    return gpu if ON_CUDA else cpu


def attention(arm):
    model = nn.TransformerEncoderLayer(256, 4, 512, 0.0, batch_first=True).to(arm.device)
    x = torch.randn(8, 128, 256, device=arm.device)
    return train(arm, sgd(model), lambda: model(x).float().square().mean())
