"""Graphs, streams, switches and generators: what an arm changes, and what is put back."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.checks import check
from benchmarks.gpu.lab import (
    DEVICE,
    ON_CUDA,
    WHERE,
    attention,
    heavy,
    measure,
    said,
    sgd,
    tiny,
)
from pytest_amp.lab.machine.global_state import GlobalState
from tests.helpers.lab import train


@check("globals", seconds=30)
def make_graphed_callables_under_arm_autocast():
    """torch refuses to capture while autocast caches: that is what cache_enabled is for."""

    def setup(arm):
        model = nn.Linear(256, 256).to(arm.device)
        x = torch.randn(64, 256, device=arm.device)
        with arm.autocast(cache_enabled=False):
            forward = torch.cuda.make_graphed_callables(model, (x,))
        return train(arm, sgd(model), lambda: forward(x).float().square().mean())

    try:
        report = measure(setup, static=False, dtype="bfloat16", min_speedup=0.01, max_time=4)
    except RuntimeError as error:
        return "proved", {"expected": "RuntimeError", "raised": str(error)[:120]}
    return "refuted", {**said(report), "coverage_says": report.gate("coverage").reason}


@check("globals", seconds=30)
def a_whole_step_in_a_graph():
    """forward, backward and a capturable optimizer captured in setup; the step replays."""

    def setup(arm):
        model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(3))).to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, capturable=True)
        x = torch.randn(512, 512, device=arm.device)

        def once():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", arm.dtype, arm.enabled, cache_enabled=False):
                loss = F.mse_loss(F.dropout(model(x), 0.1), x)
            loss.backward()
            optimizer.step()
            return loss

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                once()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = once()

        kept = model, optimizer, x  # a graph knows only their addresses

        def step():
            assert kept
            graph.replay()
            return loss

        return step

    report = measure(setup, static=False, dtype="bfloat16", min_speedup=0.01, max_time=4, steps=10)
    ok = report.verdict == "pass"
    return ("refuted" if ok else "proved"), {
        "expected": "a false failure",
        **said(report),
        "speedup": str(report.speedup),
        "losses": [list(report.fp32.losses)[-2:], list(report.amp.losses)[-2:]],
    }


@check("globals", seconds=20)
def sync_debug_mode_of_the_user():
    """A setup that forbids waiting for the device may be met by our own reads; is it put back?"""

    def setup(arm):
        step = tiny(arm)  # whose own copies to the device are waited for
        torch.cuda.set_sync_debug_mode("error")
        return step

    try:
        report = measure(setup, dtype="bfloat16")
        raised = None
        verdict = report.verdict
    except RuntimeError as error:
        place = [
            f"{Path(f.filename).name}:{f.lineno}"
            for f in traceback.extract_tb(error.__traceback__)
            if "pytest_amp" in f.filename
        ]
        raised, verdict = f"{str(error)[:100]} at {place[-2:]}", "raised"
    left = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    return ("proved" if raised or left else "refuted"), {
        "expected": "raised in our code, and left set for later tests",
        "raised": raised,
        "left_at": left,
        "test": verdict,
    }


@check("globals", seconds=20)
def current_stream_and_device_are_put_back():
    def setup(arm):
        torch.cuda.set_stream(torch.cuda.Stream())
        return tiny(arm)

    before = torch.cuda.current_stream()
    measure(setup, dtype="bfloat16", steps=3)
    after = torch.cuda.current_stream()
    torch.cuda.set_stream(before)
    return ("refuted" if after == before else "proved"), {
        "expected": "the arm's stream stays current for later tests"
    }


@check("globals", needs_cuda=False, seconds=20)
def new_tf32_switches():
    """fp32_precision (torch 2.9) set in one arm: AMP005, and all as before afterwards."""
    if not hasattr(torch.backends, "fp32_precision"):
        return "skipped", {"why": "older torch"}
    state = GlobalState(WHERE)
    before = state.flags()

    def setup(arm):
        if arm.enabled:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        return heavy(256, 2)(arm)

    report = measure(setup, dtype="bfloat16", steps=3)
    after = state.flags()
    spoke = "AMP005" in {f.code for f in report.findings}
    ok = before == after and spoke
    return ("refuted" if ok else "proved"), {
        "expected": "left changed, or not told",
        "told": spoke,
        "changed": {k: [before[k], after.get(k)] for k in before if after.get(k) != before[k]},
        "baseline": {
            k: before.get(k)
            for k in ("cuda.matmul.allow_tf32", "cudnn.allow_tf32", "float32_matmul_precision")
        },
    }


@check("globals", seconds=20)
def device_rng_is_put_back():
    torch.cuda.manual_seed(123)
    before = torch.cuda.get_rng_state()
    measure(attention, static=False, dtype="float16", min_speedup=0.01, max_time=3)
    same = torch.equal(before, torch.cuda.get_rng_state())
    return ("refuted" if same else "proved"), {"expected": "another CUDA RNG state afterwards"}


@check("globals", needs_cuda=False, seconds=40)
def fsdp2_on_one_rank():
    """DTensor parameters are digested and nudged by their local shards."""
    import torch.distributed as dist

    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=os.environ.get("MASTER_PORT", "29533"),
        RANK="0",
        WORLD_SIZE="1",
    )
    dist.init_process_group("nccl" if ON_CUDA else "gloo")
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(DEVICE, (1,))

        def setup(arm):
            model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(arm.device)
            fully_shard(model, mesh=mesh)
            x = torch.randn(16, 64, device=arm.device)
            return train(arm, sgd(model), lambda: model(x).float().square().mean())

        try:
            report = measure(setup, dtype="bfloat16", steps=4)
            return "refuted", said(report)
        except RuntimeError as error:
            place = [
                f"{Path(f.filename).name}:{f.lineno}"
                for f in traceback.extract_tb(error.__traceback__)
                if "pytest_amp" in f.filename
            ]
            return "proved", {"expected": "crash", "raised": str(error)[:120], "at": place[-2:]}
    finally:
        dist.destroy_process_group()
