"""What the inspection and the rules say of steps that only a GPU runs so."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.checks import check
from benchmarks.gpu.lab import ON_CUDA, heavy, measure, said, sgd, tiny
from tests.helpers.lab import train


@check("rules", seconds=20)
def warnings_as_errors_meet_the_profiler():
    """torch 2.11's profiler warns once, which under -W error would fail a timed test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            report = measure(tiny, static=False, min_speedup=0.01, dtype="bfloat16", max_time=3)
            return "refuted", {"verdict_of_test": report.verdict}
        except UserWarning as error:
            return "proved", {"expected": "UserWarning from busy_s", "raised": str(error)[:120]}


@check("rules", seconds=30)
def a_profiler_in_the_step():
    """A step that profiles itself meets our own profiler, and torch runs one at a time."""

    def setup(arm):
        inner = tiny(arm)

        def step():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
                return inner()

        return step

    try:
        report = measure(
            setup, static=False, min_speedup=0.01, dtype="bfloat16", max_time=8, steps=3
        )
        return "refuted", said(report)
    except RuntimeError as error:
        return "proved", {
            "expected": "the test errors after its timing",
            "raised": str(error)[:160],
        }


@check("rules", needs_cuda=False, seconds=60)
def what_has_no_flop_formula():
    """Coverage may be unknown where CUDA has operators of its own."""

    def recurrent(kind):
        def setup(arm):
            m = kind(64, 64).to(arm.device)
            x = torch.randn(8, 64, device=arm.device)
            x = x if "Cell" in kind.__name__ else x[None].repeat(4, 1, 1)

            def loss():
                y = m(x)
                return (y[0] if isinstance(y, tuple) else y).float().square().mean()

            return train(arm, sgd(m), loss)

        return setup

    def kernel(backend):
        def setup(arm):
            from torch.nn.attention import SDPBackend, sdpa_kernel

            project = nn.Linear(256, 768).to(arm.device)
            x = torch.randn(2, 64, 256, device=arm.device)

            def loss():
                q, k, v = project(x).view(2, 64, 3, 4, 64).permute(2, 0, 3, 1, 4)
                # float32 has no flash or cuDNN kernel: the fp32 arm takes what there is
                which = getattr(SDPBackend, backend) if arm.enabled else SDPBackend.MATH
                with sdpa_kernel(which):
                    return F.scaled_dot_product_attention(q, k, v).float().square().mean()

            return train(arm, sgd(project), loss)

        return setup

    def grouped(arm):
        w = nn.Parameter(torch.randn(4, 64, 64, device=arm.device) * 0.1)
        x = torch.randn(64, 64, device=arm.device)
        ends = torch.tensor([16, 32, 48, 64], device=arm.device, dtype=torch.int32)
        return train(
            arm,
            torch.optim.SGD([w], lr=1e-3),
            lambda: (
                torch._grouped_mm(x.bfloat16(), w.bfloat16(), offs=ends).float().square().mean()
            ),
        )

    cases = {k.__name__: recurrent(k) for k in (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell)}
    if ON_CUDA:
        cases |= {
            b: kernel(b)
            for b in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
        }
    cases["grouped_mm"] = grouped
    found, unknown = {}, []
    for name, setup in cases.items():
        try:
            report = measure(setup, dtype="bfloat16", steps=3, max_loss_diff=None)
            found[name] = (
                report.coverage if report.coverage is not None else report.gate("coverage").reason
            )
            if report.coverage is None:
                unknown.append(name)
        except Exception as error:  # noqa: BLE001 - told in its line
            found[name] = f"{type(error).__name__}: {str(error)[:100]}"
    return ("proved" if unknown else "refuted"), {
        "expected": "LSTM, GRU, RNN, LSTMCell, GRUCell, grouped_mm unknown; attention known",
        "unknown": unknown,
        **found,
    }


@check("rules", needs_cuda=False, seconds=90)
def casts_of_a_step_that_amp_makes_faster():
    """AMP403 says that casting costs more than it saves, of a step that is several times faster."""
    report = measure(heavy() if ON_CUDA else heavy_on_cpu, dtype="bfloat16", steps=3)
    spoke = [f for f in report.findings if f.code == "AMP403"]
    return ("proved" if spoke else "refuted"), {
        "expected": "AMP403 on tests/gpu's matmul_heavy",
        **said(report),
    }


def heavy_on_cpu(arm):
    model = nn.Sequential(*(nn.Linear(768, 768) for _ in range(4)))
    x = torch.randn(768, 768)
    return train(arm, sgd(model), lambda: F.mse_loss(model(x), x))


@check("rules", needs_cuda=False, seconds=30)
def an_optimizer_that_computes_in_bfloat16():
    """torch's Muon: its own products are in bfloat16 in both arms, and no fault of the fp32 arm."""
    if not hasattr(torch.optim, "Muon"):
        return "skipped", {"why": "no Muon"}

    def setup(arm):
        m = nn.Sequential(
            nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False)
        ).to(arm.device)
        x = torch.randn(32, 64, device=arm.device)
        return train(
            arm,
            torch.optim.Muon(m.parameters(), lr=1e-3),
            lambda: (m(x) - x).float().square().mean(),
        )

    report = measure(setup, dtype="bfloat16")
    bad = [f for f in report.findings if f.code == "AMP004"]
    return ("proved" if bad else "refuted"), {"expected": "AMP004, an error", **said(report)}


@check("rules", seconds=30)
def fused_and_capturable_optimizers():
    def setup(**kw):
        def made(arm):
            m = nn.Linear(64, 64).to(arm.device)
            x = torch.randn(32, 64, device=arm.device)
            return train(
                arm,
                torch.optim.AdamW(m.parameters(), lr=1e-3, **kw),
                lambda: (m(x) - x).float().square().mean(),
            )

        return made

    found, bad = {}, []
    for kw in (
        {"fused": True},
        {"capturable": True},
        {"foreach": True},
        {"fused": True, "capturable": True},
    ):
        report = measure(setup(**kw), dtype="float16")
        found[str(kw)] = said(report)
        if (
            report.verdict != "pass"
            or report.notes
            or any(f.severity == "error" for f in report.findings)
        ):
            bad.append(str(kw))
    return ("proved" if bad else "refuted"), {
        "expected": "an error or an ended drill",
        "bad": bad,
        **found,
    }
