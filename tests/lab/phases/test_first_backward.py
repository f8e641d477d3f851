"""Where a gradient turns to zero: the first node of the backward pass that loses it is named."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.lab.phases import first_backward
from tests.helpers.lab import measure, train, workbench

BF16, FP16 = torch.bfloat16, torch.float16


def line_of(mark: str) -> str:
    lines = Path(__file__).read_text("utf-8").splitlines()
    [number] = [index for index, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    return f"{Path(__file__).name}:{number}"


def clamped(probability):
    least = torch.finfo(probability.dtype).eps
    return probability.clamp(least, 1 - least)  # the clamp


def classifier(loss_of, classes=600):
    def setup(arm):
        model = nn.Linear(16, classes)
        nn.init.normal_(model.weight, std=0.02)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x, y = torch.randn(32, 16), torch.randint(classes, (32,))
        return train(arm, optimizer, lambda: loss_of(arm, model(x), y))

    return setup


def by_probability(arm, out, y):
    probability = clamped(out.softmax(-1).to(arm.dtype))
    return F.nll_loss(probability.log().float(), y)


def test_a_clamp_in_a_helper_is_named_though_few_elements_had_a_gradient() -> None:
    found = first_backward.zeroed(workbench(classifier(by_probability), BF16), None, 0.5)
    assert (found.op, found.module, found.node) == ("aten::clamp", None, "ClampBackward1")
    assert found.location.endswith(line_of("the clamp"))
    assert found.lost == 1
    assert found.expected > 1


def faint(arm, out, y):
    return F.cross_entropy(out.float(), y) * 1e-9  # as faint as that


def test_a_gradient_that_underflows_is_named_at_the_cast_with_its_size() -> None:
    found = first_backward.zeroed(workbench(classifier(faint, 4), FP16), 1.0, 0.5)
    assert found.node == "ToCopyBackward0"
    assert 0 < found.expected < 2**-24
    assert first_backward.zeroed(workbench(classifier(faint, 4), FP16), 2.0**24, 0.5) is None


def test_relus_that_zero_as_much_in_both_arms_are_not_named() -> None:
    def loss_of(arm, out, y):
        return F.cross_entropy(out.relu().float(), y)

    assert first_backward.zeroed(workbench(classifier(loss_of, 8), BF16), None, 0.1) is None


def test_the_finding_has_the_line() -> None:
    report = measure(classifier(by_probability), dtype="bfloat16")
    [found] = [each for each in report.findings if each.code == "AMP302"]
    assert found.location.endswith(line_of("the clamp"))
    assert "does not underflow" in found.message
    assert f"({found.location})" in found.title
