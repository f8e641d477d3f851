"""Compiled steps: their memory, their speed, and their CUDA graphs."""

from __future__ import annotations

import gc

import torch
from torch import nn

from benchmarks.gpu.checks import check
from benchmarks.gpu.lab import ON_CUDA, Pretend, by_hand, measure, peak, said, secs, sgd
from tests.helpers.lab import train


def block(mode=None, width=512, layers=3):
    width = width if ON_CUDA else 64

    def setup(arm):
        model = nn.Sequential(
            *[
                nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU())
                for _ in range(layers)
            ]
        ).to(arm.device)
        compiled = (
            model
            if mode is None
            else torch.compile(model, **({} if mode == "default" else {"mode": mode}))
        )
        x = torch.randn(width, width, device=arm.device)
        return train(arm, sgd(model), lambda: compiled(x).float().square().mean())

    return setup


@check("compile-memory", needs_cuda=False, seconds=90)
def memory_of_a_cold_compile():
    """Inductor's autotuning allocates a buffer as large as the L2 cache, once."""
    setup = block("default")
    rows = [
        [peak(setup, arm, torch.bfloat16).peak_bytes for arm in ("amp", "fp32")] for _ in range(2)
    ]
    eager = [peak(block(), arm, torch.bfloat16).peak_bytes for arm in ("amp", "fp32")]
    cold, warm = (1 - a / f for a, f in rows)
    return ("proved" if abs(cold - warm) > 0.02 else "refuted"), {
        "expected": "the reduction moves by > 2 points with the state of a cache",
        "reduction_cold": cold,
        "reduction_warm": warm,
        "MiB_cold": [b / 2**20 for b in rows[0]],
        "MiB_warm": [b / 2**20 for b in rows[1]],
        "MiB_eager": [b / 2**20 for b in eager],
    }


@check("compile-memory", seconds=90)
def memory_of_reduce_overhead_depends_on_the_order():
    """The former arm's CUDA graphs may still be held when an arm's base level is read."""
    setup = block("reduce-overhead")
    seen = {}
    for name in ("amp", "fp32", "amp", "fp32"):
        gc.collect()
        held = torch.cuda.memory_allocated()
        record = peak(setup, name, torch.bfloat16)
        gc.collect()
        left = torch.cuda.memory_allocated()
        seen.setdefault(name, []).append({"peak": record.peak_bytes, "before": held, "left": left})
    from torch import _dynamo

    _dynamo.reset()
    gc.collect()
    freed = left - torch.cuda.memory_allocated()
    fresh = {}
    for name in ("fp32", "amp"):
        _dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        fresh[name] = peak(setup, name, torch.bfloat16).peak_bytes
    told = 1 - seen["amp"][0]["peak"] / seen["fp32"][0]["peak"]
    true = 1 - fresh["amp"] / fresh["fp32"]
    return ("proved" if abs(told - true) > 0.01 else "refuted"), {
        "expected": "fp32's peak understated by what the amp arm's graphs held",
        "told": told,
        "with_clean_base": true,
        "left_by_graphs": freed,
        "readings": seen,
        "fresh": fresh,
    }


@check("compile-memory", seconds=60)
def logging_the_loss_one_step_late():
    """The former loss is read before the next step, and the other arm's graphs ran between."""

    def setup(arm):
        model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256)).to(arm.device)
        x = torch.randn(64, 256, device=arm.device)

        def forward():
            return model(x).float().square().mean()

        compiled, optimizer, late = torch.compile(forward, mode="reduce-overhead"), sgd(model), []

        def step():
            if late:
                late.pop().item()
            optimizer.zero_grad(set_to_none=True)
            with arm.autocast():
                loss = compiled()
            loss.backward()
            optimizer.step()
            late.append(loss.detach())
            return loss

        return step

    step = setup(Pretend(True, torch.bfloat16))
    alone = None
    try:
        for _ in range(8):
            step()
    except RuntimeError as error:
        alone = str(error)[:120]
    del step
    try:
        report = measure(
            setup, static=False, dtype="bfloat16", min_speedup=0.01, max_time=6, steps=5
        )
        return "refuted", {"alone": alone, **said(report)}
    except RuntimeError as error:
        return ("proved" if alone is None else "measured"), {
            "expected": "'overwritten by a subsequent run', though alone it runs",
            "alone": alone,
            "raised": str(error)[:160],
            "notes": getattr(error, "__notes__", []),
        }


@check("compile-timing", needs_cuda=False, seconds=100)
def speed_of_compiled_modes():
    """Each mode's verdict and speedup beside a hand loop of the same compiled step."""
    from torch import _dynamo
    from torch._dynamo.utils import counters

    found, bad = {}, []
    for mode in ("default", "reduce-overhead") if ON_CUDA else ("default",):
        counters.clear()
        report = measure(block(mode, 1024), static=False, dtype="bfloat16", max_time=secs(9, 1))
        skips = {k: v for k, v in counters["inductor"].items() if "cudagraph" in k}
        hand = {}
        for enabled in (False, True):
            _dynamo.reset()
            hand[enabled] = by_hand(block(mode, 1024), enabled, torch.bfloat16, secs(1.0, 0.2))[0]
        ours, theirs = report.speedup.value, hand[False] / hand[True]
        found[mode] = {
            **said(report),
            "speedup": str(report.speedup),
            "hand": theirs,
            "off_by": ours / theirs - 1,
            "cudagraphs": skips,
            "step_ms": [report.fp32.step_time_s * 1e3, report.amp.step_time_s * 1e3],
            "hand_ms": [hand[False] * 1e3, hand[True] * 1e3],
        }
        if abs(ours / theirs - 1) > 0.1 or report.verdict != "pass" or report.coverage != 1:
            bad.append(mode)
    return ("proved" if bad else "refuted"), {
        "expected": "off by > 10%, a false failure or unknown coverage",
        "bad": bad,
        **found,
    }
