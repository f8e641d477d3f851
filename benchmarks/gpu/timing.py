"""Whether what is timed is what a step takes, and what our own work adds to it."""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.checks import check
from benchmarks.gpu.lab import (
    DEV,
    ON_CUDA,
    WHERE,
    Pretend,
    by_hand,
    heavy,
    measure,
    pairs,
    secs,
    sgd,
    sync,
    tiny,
    workbench,
)
from pytest_amp.lab.arm import Arm
from pytest_amp.lab.scaling.skip_check import SkipCheck
from pytest_amp.lab.watch.fingerprint import digest, sample
from pytest_amp.lab.watch.kernel_time import busy_s
from pytest_amp.recipes import Recipe
from tests.helpers.lab import train


@check("timing", needs_cuda=False, seconds=40)
def speedup_against_cuda_events():
    """The plugin's paired blocks beside a loop by hand that is timed by CUDA events."""
    found, worst = {}, 0.0
    wide = heavy(4096)  # so that the device, not the host, sets the pace of both arms
    for dtype in (torch.float16, torch.bfloat16):
        _, told = pairs(wide, dtype, ("fp32", "amp"), secs(2.0))
        hand = {
            side: by_hand(wide, side == "amp", dtype, secs(1.0, 0.3)) for side in ("fp32", "amp")
        }
        ours = told["median"]
        theirs = hand["fp32"][0] / hand["amp"][0]
        worst = max(worst, abs(ours / theirs - 1))
        found[str(dtype)] = {
            "plugin": told,
            "hand_ms": {k: [x * 1e3 for x in v] for k, v in hand.items()},
            "hand_speedup": theirs,
            "off_by": ours / theirs - 1,
        }
    return ("proved" if worst > 0.05 else "refuted"), {
        "expected": "off by more than 5%: clocks differ between short "
        "interleaved blocks and a steady loop",
        **found,
    }


@check("timing", seconds=30)
def speedup_of_large_products():
    """Large products reach the power limit: blocks in turns, and each arm alone for 2 s."""
    setup = heavy(8192, 2, 8192)
    _, told = pairs(setup, torch.bfloat16, ("fp32", "amp"), 4.0)
    fp32 = by_hand(setup, False, torch.bfloat16, 2.0, 2)
    amp = by_hand(setup, True, torch.bfloat16, 2.0, 10)
    steady = fp32[2] / amp[2]
    off = told["median"] / steady - 1
    return ("proved" if abs(off) > 0.05 else "refuted"), {
        "expected": "speedup overstated by > 5% where steady amp throttles",
        "plugin": told,
        "alone_first_half_ms": [fp32[1] * 1e3, amp[1] * 1e3],
        "alone_second_half_ms": [fp32[2] * 1e3, amp[2] * 1e3],
        "off_by": off,
    }


@check("timing", needs_cuda=False, seconds=60)
def a_against_a():
    """The same side twice: 1.0 must be inside of the interval."""
    found, wrong = {}, []
    for name, setup, dtype, side, seconds in (
        ("matmul amp", heavy(), torch.bfloat16, "amp", secs(10)),
        ("tiny amp float16", tiny, torch.float16, "amp", secs(10)),
    ):
        _, told = pairs(setup, dtype, (side, side), seconds)
        found[name] = told
        if not told["low"] <= 1 <= told["high"]:
            wrong.append(name)
    return ("proved" if wrong else "refuted"), {
        "expected": "an interval without 1",
        "wrong": wrong,
        **found,
    }


@check("timing", needs_cuda=False, seconds=30)
def cost_of_watching_the_scaler():
    """Whatever of ours runs in timed blocks would slow the float16 amp arm alone."""
    plain, arm = Pretend(True, torch.float16), Arm("amp", WHERE, Recipe.parse("fp16"))
    arm.pause_scaler_record()
    steps = {"torch": tiny(plain), "ours": tiny(arm)}
    times = {"torch": [], "ours": [], "watched": []}

    def timed(step, n):
        for _ in range(3):
            step()
        sync()
        began = time.perf_counter()
        for _ in range(n):
            step()
        sync()
        return (time.perf_counter() - began) / n

    for _ in range(int(secs(25, 6))):
        times["torch"].append(timed(steps["torch"], 50))
        times["ours"].append(timed(steps["ours"], 50))
        skips = SkipCheck()
        with skips.watching():
            steps["ours"]()
        before = skips.look()
        times["watched"].append(timed(steps["ours"], 50))
        skips.skipped_since(before)
    m = {k: median(v) for k, v in times.items()}
    cost = m["watched"] / m["torch"] - 1
    return ("proved" if cost > 0.005 else "refuted"), {
        "expected": "more than 0.5% of a host-bound step",
        "us": {k: v * 1e6 for k, v in m.items()},
        "share": cost,
    }


@check("timing", needs_cuda=False, seconds=20)
def synchronizations_inside_a_timed_block():
    """In a block of bfloat16 steps nothing may wait for the device."""
    if not ON_CUDA:
        return "skipped", {"why": "needs CUDA"}
    bench = workbench(tiny, torch.bfloat16)
    with SkipCheck().watching(), bench.built("amp") as resident, resident.active():
        for _ in range(5):
            resident.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                resident.step()
            why = None
        except RuntimeError as error:
            why = str(error)[:200]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return ("proved" if why else "refuted"), {
        "expected": "a hidden .item() inside the block",
        "raised": why,
    }


@check("timing", needs_cuda=False, seconds=20)
def fixed_cost_per_block():
    """How long the device idles between two blocks, while globals and generators are swapped."""
    bench = workbench(tiny, torch.bfloat16)
    with SkipCheck().watching() as skips, bench.built("amp") as resident:
        with resident.active():
            resident.step()
        began = time.perf_counter()
        for _ in range(50):
            with resident.active():
                skips.look()
            WHERE.allocation_retries()
        each = (time.perf_counter() - began) / 50
    return "measured", {"expected": "well under a block's 10 ms, outside of it", "ms": each * 1e3}


@check("timing", seconds=20)
def work_on_a_side_stream_is_waited_for():
    def setup(arm):
        stream = torch.cuda.Stream()
        a = torch.randn(4096, 4096, device=arm.device)

        def step():
            with torch.cuda.stream(stream):
                b = a @ a
            b.record_stream(torch.cuda.current_stream())
            return b[0, 0]

        return step

    _, told = pairs(setup, torch.bfloat16, ("fp32", "fp32"), 1.0)
    step = setup(Pretend(False, torch.bfloat16))
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        step()
    torch.cuda.synchronize()
    hand = (time.perf_counter() - began) / 20 * 1e3
    off = told["step_ms"][0] / hand - 1
    return ("proved" if abs(off) > 0.1 else "refuted"), {
        "expected": "side-stream work missed",
        "plugin_ms": told["step_ms"][0],
        "hand_ms": hand,
    }


@check("timing", needs_cuda=False, seconds=40)
def fingerprints_of_a_124M_parameter_model():  # noqa: N802
    """Every parameter is digested at each build, piece by piece: on a GPU, launches bound it."""
    scale = 1 if ON_CUDA else 16
    shapes = [
        (50257 // scale, 768),
        (1024, 768),
        *[
            (768, 2304 // scale),
            (768, 768 // scale),
            (768, 3072 // scale),
            (3072 // scale, 768),
            (768,),
            (768,),
        ]
        * 12,
    ]
    params = [torch.randn(*shape, device=DEV) for shape in shapes]
    spent = []
    for _ in range(2):
        sync()
        began = time.perf_counter()
        digest(params)
        for p in params:
            sample(p)
        sync()
        spent.append(time.perf_counter() - began)
    return ("proved" if spent[1] > 1.0 else "refuted"), {
        "expected": "over a second for each of 3 to 7 builds of a test",
        "seconds": spent,
    }


@check("profiler", seconds=60)  # a process in which nothing has profiled before
def profiler_leftovers():
    """What torch's profiler leaves behind may slow the steps of later tests."""
    arm = Pretend(True, torch.bfloat16)
    step, big = tiny(arm), heavy()(arm)

    def host():
        values = []
        for _ in range(15):
            sync()
            began = time.perf_counter()
            for _ in range(40):
                step()
            sync()
            values.append((time.perf_counter() - began) / 40)
        return median(values)

    for _ in range(10):
        step(), big()
    host()
    before, ratio_before = host(), pairs(tiny, torch.bfloat16, ("fp32", "amp"), 1.5)[1]["median"]
    after_first = host()
    costs = []
    for _ in range(2):
        began = time.perf_counter()
        busy = busy_s(WHERE, big)
        costs.append(time.perf_counter() - began)
    after, ratio_after = host(), pairs(tiny, torch.bfloat16, ("fp32", "amp"), 1.5)[1]["median"]
    hand = by_hand(heavy(), True, torch.bfloat16, 0.5)[0]
    slower = after / before - 1
    return ("proved" if slower > 0.02 else "refuted"), {
        "expected": "host-bound steps slower by > 2% in all later tests of the process",
        "us_before": before * 1e6,
        "us_after_first": after_first * 1e6,
        "us_after": after * 1e6,
        "slower": slower,
        "speedup_before": ratio_before,
        "speedup_after": ratio_after,
        "busy_s_cost_s": costs,
        "busy_ms": None if busy is None else busy * 1e3,
        "step_ms_by_events": hand * 1e3,
    }


@check("timing", seconds=60)
def slow_shapes_that_are_not_slow():
    """AMP405's word on a shape beside what its kernels really take."""

    def convolutions(batch, ch=128):
        def setup(arm):
            m = nn.Sequential(
                nn.Conv2d(ch, ch, 3, padding=1), nn.ReLU(), nn.Conv2d(ch, ch, 3, padding=1)
            ).to(arm.device)
            x = torch.randn(batch, ch, 56, 56, device=arm.device)
            return train(arm, sgd(m), lambda: m(x).float().square().mean())

        return setup

    def heads(batch, n, seq=1024, d=64):
        def setup(arm):
            project = nn.Linear(n * d, 3 * n * d).to(arm.device)
            x = torch.randn(batch, seq, n * d, device=arm.device)

            def loss():
                q, k, v = project(x).view(batch, seq, 3, n, d).permute(2, 0, 3, 1, 4)
                return (
                    F.scaled_dot_product_attention(q, k, v, is_causal=True).float().square().mean()
                )

            return train(arm, sgd(project), loss)

        return setup

    def products(rows, width):
        def setup(arm):
            m = nn.Sequential(
                nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
            ).to(arm.device)
            x = torch.randn(rows, width, device=arm.device)
            return train(arm, sgd(m), lambda: m(x).float().square().mean())

        return setup

    found, false = {}, []
    # (name, odd, even, work of odd / work of even)
    for name, odd, even, work in (
        ("conv batch 60 and 64", convolutions(60), convolutions(64), 60 / 64),
        ("12 heads and 16", heads(16, 12), heads(16, 16), None),
        ("batch 12 and 16, 8 heads", heads(12, 8), heads(16, 8), 12 / 16),
        ("rows 4093 and 4096", products(4093, 4096), products(4096, 4096), 4093 / 4096),
        ("width 4090 and 4096", products(4096, 4090), products(4096, 4096), (4090 / 4096) ** 2),
    ):
        spoke = "AMP405" in {f.code for f in measure(odd, dtype="bfloat16", steps=2).findings}
        times = [by_hand(s, True, torch.bfloat16, 0.4)[0] for s in (odd, even)]
        slowdown = times[0] / times[1] / work if work else None
        found[name] = {
            "AMP405": spoke,
            "ms": [t * 1e3 for t in times],
            "slowdown_per_work": slowdown,
        }
        if spoke and (slowdown is None or slowdown < 1.15):
            false.append(name)
    return ("proved" if false else "refuted"), {
        "expected": "spoken of, and no slower per work: conv batch, heads, batch, rows",
        "false": false,
        **found,
    }


@check("processes", needs_cuda=False, seconds=30)
def speedup_in_one_process():
    told = {}
    for name, setup, dtype in (
        ("matmul bfloat16", heavy(), torch.bfloat16),
        ("tiny float16", tiny, torch.float16),
    ):
        _, told[name] = pairs(setup, dtype, ("fp32", "amp"), secs(2.0))
    return "measured", {
        k: {x: v[x] for x in ("median", "low", "high", "step_ms", "pairs")} for k, v in told.items()
    }
