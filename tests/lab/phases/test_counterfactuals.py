"""Reruns with one thing changed: a cause is confirmed where the failing gate then passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.lab.phases import counterfactuals
from tests.helpers.lab import SimulatedDevice, active, measure, train, workbench

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


def test_a_line_that_the_gate_passes_without_is_the_confirmed_cause() -> None:
    report = measure(normalised, dtype="float16")
    [finding] = report.findings
    assert report.gate("loss_diff").verdict == "fail"
    assert (finding.code, finding.module, finding.confirmed) == ("AMP304", "1", True)
    line = "tests/lab/phases/test_counterfactuals.py:19"
    assert f"going forward, aten::mul in 1 at {line} (float16) is the first" in finding.message
    assert f"with {line} kept in float32, loss_diff passes" in finding.message
    assert finding.location == line
    assert "confirmed cause of loss_diff" in report.explain()


def test_over_several_seeds_the_one_with_the_largest_difference_runs_again() -> None:
    report = measure(normalised, dtype="float16", seeds=24, max_loss_diff=0.002)
    assert report.gate("loss_diff").verdict == "fail"
    assert "over 24 seeds" in report.gate("loss_diff").reason
    [finding] = [each for each in report.findings if each.code == "AMP304"]
    assert finding.confirmed
    assert "kept in float32, loss_diff passes" in finding.message


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
    assert "kept in float32, loss_diff still fails" in finding.message
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
        run(bench, 3)[0].peak_bytes
        for run in (lambda b, n: counterfactuals.parity.run(b, "amp", n),
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


class Layouts(SimulatedDevice):
    """A clock on which convolutions take half the time where their weights are channels_last."""

    def convolving(self, arm, duration_s=0.010):
        convolution = nn.Conv2d(8, 8, 3)
        model = nn.Sequential(convolution, nn.Flatten(), nn.Linear(8 * 36, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(4, 8, 8, 8), torch.randint(2, (4,))
        step = train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))

        def timed():
            turned = convolution.weight.is_contiguous(memory_format=torch.channels_last)
            self.time_s += duration_s / (2 if turned else 1)
            return step()

        return timed


def test_a_layout_that_makes_slow_convolutions_faster_is_confirmed() -> None:
    device = Layouts()
    report = measure(device.convolving, device, static=False, min_speedup=1.5, max_time=30)
    assert report.gate("speedup").verdict == "fail"
    [note] = [each for each in report.notes if "channels_last" in each]
    assert note.startswith("confirmed by a rerun: with channels_last weights an amp step takes ")
    assert "5.00 ms, and 10.0 ms without (2.00x" in note
    assert note in " ".join(report.explain().split())


def test_a_layout_is_not_tried_where_speed_is_as_wanted() -> None:
    device = Layouts()
    report = measure(
        device.convolving, device, static=False, min_speedup=0.9, max_time=30, dtype="bfloat16"
    )
    assert report.gate("speedup").verdict == "pass"
    assert report.notes == ()


def test_a_layout_that_changes_nothing_is_not_told() -> None:
    device = Layouts()

    def setup(arm):
        step = device.convolving(arm, duration_s=0.0)

        def timed():
            device.time_s += 0.01
            return step()

        return timed

    report = measure(setup, device, static=False, min_speedup=1.5, max_time=30, dtype="bfloat16")
    assert report.gate("speedup").verdict == "fail"
    assert report.notes == ()


def test_channels_last_turns_the_weights_of_images_and_volumes_alone() -> None:
    models = []

    def setup(arm):
        model = nn.ModuleDict(
            {"image": nn.Conv2d(3, 4, 3), "volume": nn.Conv3d(3, 4, 3), "line": nn.Linear(3, 4)}
        )
        models.append(model)
        return lambda: sum(
            out.sum()
            for out in (
                model["image"](torch.ones(1, 3, 8, 8)),
                model["volume"](torch.ones(1, 3, 8, 8, 8)),
                model["line"](torch.ones(1, 3)),
            )
        )

    bench = workbench(setup)
    with active(bench, "amp") as plain:
        expected = plain.step()
    with bench.built("amp", counterfactuals.channels_last) as changed, changed.active():
        found = [changed.step() for _ in range(2)]
    torch.testing.assert_close(found, [expected, expected])
    plain, turned = models
    for name, layout in (("image", torch.channels_last), ("volume", torch.channels_last_3d)):
        assert turned[name].weight.is_contiguous(memory_format=layout)
        assert not plain[name].weight.is_contiguous(memory_format=layout)
    assert turned["line"].weight.is_contiguous()


def test_cudnn_tries_its_kernels_in_the_changed_arm_alone() -> None:
    def setup(arm):
        return lambda: torch.backends.cudnn.benchmark

    bench = workbench(setup)
    with bench.built("amp", counterfactuals.autotuned) as changed, bench.built("amp") as plain:
        for _ in range(2):
            with changed.active():
                assert changed.step() is True
            with plain.active():
                assert plain.step() is False
    assert torch.backends.cudnn.benchmark is False
