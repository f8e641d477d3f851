"""Reruns with one thing changed: a cause is confirmed where the failing gate then passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.run import counterfactuals
from tests.laboratory import measure, train, workbench

HALF = torch.float16


class ScaleToOne(nn.Module):
    """A normalisation whose squares leave float16's range, and whose result does not."""

    def forward(self, x):
        return x / (x * x).mean(-1, keepdim=True).sqrt()


def normalised(arm):
    model = nn.Sequential(nn.Linear(8, 8), ScaleToOne(), nn.Linear(8, 4))
    nn.init.constant_(model[0].weight, 60.0)
    x, y = torch.rand(16, 8) + 0.5, torch.randint(4, (16,))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    return train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))


def test_a_module_that_the_gate_passes_without_is_the_confirmed_cause() -> None:
    report = measure(normalised, dtype="float16")
    [finding] = report.findings
    assert report.gate("loss_diff").verdict == "fail"
    assert (finding.code, finding.module, finding.confirmed) == ("AMP304", "2", True)
    assert "going forward, 1 is the first to leave fp32" in finding.message
    assert "with 1 kept in float32, loss_diff passes" in finding.message
    assert "confirmed cause of loss_diff" in report.explain()


def test_a_module_that_the_gate_fails_without_is_only_a_suspect() -> None:
    """Its output overflows when the next one casts it."""

    def setup(arm):
        model = nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 1))
        nn.init.constant_(model[0].weight, 1e4)
        nn.init.constant_(model[2].weight, 1e-6)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
        return train(arm, optimizer, lambda: model(torch.ones(4, 8)).float().mean())

    report = measure(setup, dtype="float16")
    [finding] = [each for each in report.findings if each.code == "AMP301"]
    assert not finding.confirmed
    assert "kept in float32, loss_diff fails all the same" in finding.message
    assert "suspected cause of loss_diff" in report.explain()


def test_casts_that_the_cache_keeps_alive_are_the_confirmed_cause_of_a_peak() -> None:
    """Each weight is used once, so that its cast could go at once."""

    def setup(arm):
        layers = nn.ModuleList(nn.Linear(256, 256, bias=False) for _ in range(8))
        x = torch.randn(1, 256)

        def loss_of():
            with torch.no_grad():
                for layer in layers:
                    layer.weight.requires_grad_()
            h = x
            for layer in layers:
                h = layer(h).relu()
            return h.float().square().mean()

        return train(arm, torch.optim.SGD(layers.parameters(), lr=1e-3), loss_of)

    bench = workbench(setup)
    plain, without = (
        run(bench, 3).peak_bytes
        for run in (lambda b, n: counterfactuals.parity.run(b, "amp", n)[0],
                    counterfactuals.without_cast_cache)
    )  # fmt: skip
    assert without <= plain


def test_keeping_one_module_changes_its_dtype_and_no_other() -> None:
    seen = {}

    class Tell(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.inner = name, nn.Linear(8, 8)

        def forward(self, x):
            out = self.inner(x)
            seen[self.name] = (x.dtype, out.dtype)
            return out

    def setup(arm):
        model = nn.Sequential(Tell("a"), Tell("b"), Tell("c"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return train(arm, optimizer, lambda: model(torch.randn(4, 8)).float().mean())

    counterfactuals.in_float32(workbench(setup), 1, {"1"})
    assert seen["a"] == (torch.float32, torch.bfloat16)
    assert seen["b"] == (torch.float32, torch.float32)
    assert seen["c"] == (torch.float32, torch.bfloat16)
    counterfactuals.in_float32(workbench(setup, HALF), 1, {"1.inner"})
    assert seen["b"] == (torch.float16, torch.float32)


def test_a_step_that_does_not_bear_the_change_is_noted_and_stays_a_suspect() -> None:
    class Strict(nn.Module):
        def forward(self, x):
            if not torch.is_autocast_enabled("cpu") and x.requires_grad and self.armed:
                raise ValueError("only under autocast")
            return x * x

        armed = False

    def setup(arm):
        model = nn.Sequential(nn.Linear(8, 8), Strict(), nn.Linear(8, 1))
        nn.init.constant_(model[0].weight, 60.0)
        model[1].armed = arm.enabled
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
        return train(arm, optimizer, lambda: model(torch.ones(4, 8)).float().mean())

    report = measure(setup, dtype="float16")
    [finding] = [each for each in report.findings if each.code == "AMP301"]
    assert not finding.confirmed
    assert any("the rerun for AMP301 ended early: ValueError" in note for note in report.notes)
