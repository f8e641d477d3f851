"""Whether a peak is the arm's own, and what happens where memory runs out."""

from __future__ import annotations

import gc
import os

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.checks import TooLong, check
from benchmarks.gpu.lab import (
    DEV,
    ON_CUDA,
    Pretend,
    attention,
    heavy,
    measure,
    peak,
    said,
    sgd,
)
from tests.helpers.lab import train


def conv(channels=64, size=64, batch=16, benchmark=False):
    channels, size, batch = (channels, size, batch) if ON_CUDA else (4, 8, 2)

    def setup(arm):
        torch.backends.cudnn.benchmark = benchmark
        model = nn.Sequential(
            nn.Conv2d(8, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 8, 3, padding=1),
        ).to(arm.device)
        x = torch.randn(batch, 8, size, size, device=arm.device)
        return train(arm, sgd(model), lambda: model(x).float().square().mean())

    return setup


def lstm(arm):
    model = nn.LSTM(64, 64, 2, dropout=0.1, batch_first=True).to(arm.device)
    x = torch.randn(8, 16, 64, device=arm.device)
    return train(arm, sgd(model), lambda: model(x)[0].float().square().mean())


@check("memory", needs_cuda=False, seconds=60)
def memory_depends_on_who_was_first():
    """The first arm alone may pay for workspaces, dropout states and kernel trials."""
    found, biased = {}, []
    setups = {
        "conv": conv(),
        "conv benchmark": conv(48, 56, benchmark=True),
        "attention": attention,
        "matmul": heavy(1024, 3),
    }
    if ON_CUDA:  # not every CPU has the kernels
        setups["lstm dropout"] = lstm
    for name, setup in setups.items():
        order = ["amp", "fp32", "amp", "fp32"]
        seen = [peak(setup, arm, torch.bfloat16).peak_bytes for arm in order]
        told = 1 - seen[0] / seen[1]
        again = 1 - seen[2] / seen[3]
        found[name] = {
            "MiB": [b / 2**20 for b in seen],
            "reduction_told": told,
            "reduction_again": again,
        }
        if abs(told - again) > 0.01:
            biased.append(name)
    return ("proved" if biased else "refuted"), {
        "expected": "the reduction moves by > 1 point between first and second reading",
        "biased": biased,
        **found,
    }


@check("memory", needs_cuda=False, seconds=30)
def memory_by_hand():
    """The plugin's peaks beside reset_peak_memory_stats / max_memory_allocated of a plain loop."""
    if not ON_CUDA:
        record = peak(heavy(), "amp", torch.bfloat16)
        return "measured", {"peak": record.peak_bytes, "reserved": record.reserved_bytes}
    found, off = {}, 0.0
    for name, enabled in (("amp", True), ("fp32", False)):
        record = peak(heavy(), name, torch.bfloat16)
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.manual_seed(0)
        step = heavy()(Pretend(enabled, torch.bfloat16))
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        first = torch.cuda.max_memory_allocated() - before
        torch.cuda.reset_peak_memory_stats()
        for _ in range(5):
            step()
        steady = torch.cuda.max_memory_allocated() - before
        del step
        found[name] = {
            "plugin": record.peak_bytes,
            "hand": first,
            "hand_after_warm_up": steady,
            "reserved": record.reserved_bytes,
        }
        off = max(off, abs(record.peak_bytes / first - 1))
    return ("proved" if off > 0.01 else "refuted"), {
        "expected": "more than 1% apart",
        "off_by": off,
        **found,
    }


@check("memory", needs_cuda=False, seconds=20)
def workspaces_hide_the_reduction_of_small_models():
    """cuBLAS's workspace (32 MiB on Hopper) is in both peaks: of a small model it is nearly all."""
    setup = heavy(256, 8, 2048)
    amp, fp32 = (peak(setup, arm, torch.bfloat16).peak_bytes for arm in ("amp", "fp32"))
    os_ws = 0
    if ON_CUDA:
        torch._C._cuda_clearCublasWorkspaces()
        a = torch.cuda.memory_allocated()
        torch.ones(64, 64, device=DEV) @ torch.ones(64, 64, device=DEV)
        os_ws = torch.cuda.memory_allocated() - a
    without = 1 - (amp - os_ws) / max(1, fp32 - os_ws)
    return "measured", {
        "told": 1 - amp / fp32,
        "without_workspace": without,
        "workspace_MiB": os_ws / 2**20,
        "MiB": [fp32 / 2**20, amp / 2**20],
    }


@check("memory", seconds=20)
def losses_and_scales_that_are_kept_look_like_a_leak():
    """What we keep of a float16 step, in blocks of 512 bytes, may look like a leak to AMP502."""

    def setup(arm):
        model = nn.Conv2d(1, 2, 3).to(arm.device)
        x = torch.randn(2, 1, 8, 8, device=arm.device)
        return train(arm, sgd(model), lambda: model(x).float().square().mean())

    report = measure(setup, dtype="float16", steps=20)
    bad = [f for f in report.findings if f.code == "AMP502"]
    return ("proved" if bad else "refuted"), {
        "expected": "AMP502, an error",
        "peak": report.amp.peak_bytes,
        **said(report),
    }


@check("memory", seconds=30)
def a_live_graph_of_the_user_survives_the_clearing_of_workspaces():
    """Our empty_cache() frees cuBLAS workspaces, into which a captured graph may point."""
    a, b = (torch.randn(64, 65536, device=DEV), torch.randn(65536, 64, device=DEV))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            a @ b
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = a @ b
    graph.replay()
    torch.cuda.synchronize()
    before = out.clone()
    measure(attention, dtype="bfloat16", steps=3)
    filler = [torch.ones(2**20, device=DEV) for _ in range(128)]
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    kept, intact = torch.equal(before, out), all(bool((f == 1).all()) for f in filler)
    return ("refuted" if kept and intact else "proved"), {
        "expected": "wrong results, overwritten tensors or a crash",
        "result_kept": kept,
        "others_intact": intact,
    }


def too_large_together(cycle):
    def setup(arm):
        model = nn.Linear(256, 256).to(arm.device)
        model.register_buffer(
            "held",
            torch.zeros(2 * 2**30 if ON_CUDA else 2**10, dtype=torch.uint8, device=arm.device),
        )
        if cycle == "trainer":
            trainer = type("Trainer", (), {})()
            trainer.model, model.trainer = model, trainer
        if cycle == "hook":
            model.register_forward_hook(lambda *call: call[-1] if model is not None else None)
        optimizer = sgd(model)
        x = torch.randn(64, 256, device=arm.device)
        return train(arm, optimizer, lambda: F.mse_loss(model(x), x) + 0 * model.held[0])

    return setup


@check("oom", seconds=60)
def arms_that_do_not_fit_together():
    """Models in reference cycles must be gone before each arm is timed alone, too."""
    found, broken = {}, []
    for cycle in ("none", "hook", "trainer"):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + 3 * 2**30) / total
        )
        try:
            report = measure(
                too_large_together(cycle),
                static=False,
                min_speedup=0.01,
                steps=3,
                dtype="bfloat16",
                max_time=20,
            )
            found[cycle] = {"verdict": report.verdict, "notes": list(report.notes)}
        except BaseException as error:
            if isinstance(error, TooLong):
                raise
            found[cycle] = f"{type(error).__name__}: {str(error)[:120]}"
            broken.append(cycle)
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        torch.cuda.empty_cache()
    return ("proved" if broken else "refuted"), {
        "expected": "OutOfMemoryError instead of a rebuild, for 'hook' and 'trainer'",
        "broken": broken,
        **found,
    }


@check("alloc", seconds=60)
def memory_under_this_allocator():
    setup = heavy(1024, 3)
    seen = [peak(setup, arm, torch.bfloat16) for arm in ("amp", "fp32", "amp", "fp32")]
    return "measured", {
        "conf": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
        "backend": torch.cuda.get_allocator_backend(),
        "MiB": [r.peak_bytes / 2**20 for r in seen],
        "reserved_MiB": [r.reserved_bytes / 2**20 for r in seen],
        "repeats": [r.peak_bytes for r in seen[:2]] == [r.peak_bytes for r in seen[2:]],
    }
