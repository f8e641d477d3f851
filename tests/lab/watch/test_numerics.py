"""What the witness of two first steps makes of gradients and outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_amp.lab.watch.modules import Call, ModuleStack
from pytest_amp.lab.watch.numerics import SAMPLE, Witness, seen_by


def witness(*gradients, start=1.0):
    """What is seen of one step whose parameters have these gradients."""
    parameters = [torch.full((4,), start).requires_grad_() for _ in gradients]
    for parameter, values in zip(parameters, gradients, strict=True):
        parameter.grad = None if values is None else torch.tensor(values)
    optimizer, seen = torch.optim.SGD(parameters, lr=0.1), Witness()
    with seen.watching(ModuleStack()):
        optimizer.step()
        for parameter in parameters:
            parameter.grad = torch.full((4,), 9.0)  # a second step is not looked at
        optimizer.step()
    return seen


def only(ours, theirs):
    [found] = witness(ours).gradients_beside(witness(theirs))
    return found


def test_equal_gradients_have_cosine_and_ratio_1() -> None:
    found = only([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert (found.cosine, found.ratio) == pytest.approx((1, 1))
    assert (found.zeroed, found.share, found.parameter) == (0, 1, 0)


def test_direction_and_length_are_told_apart() -> None:
    assert only([2.0, 0, 0, 0], [1.0, 0, 0, 0]).ratio == pytest.approx(2)
    turned = only([0, 1.0, 0, 0], [1.0, 0, 0, 0])
    assert (turned.cosine, turned.ratio) == pytest.approx((0, 1))
    assert only([-1.0, 0, 0, 0], [1.0, 0, 0, 0]).cosine == pytest.approx(-1)


def test_zeroed_is_the_share_of_what_fp32_has() -> None:
    assert only([1.0, 0, 0, 0], [1.0, 1.0, 0, 0]).zeroed == 0.5
    assert only([1.0, 1.0, 1.0, 0], [1.0, 1.0, 0, 0]).zeroed == 0
    assert only([1.0, 0, 0, 0], [0.0, 0, 0, 0]).zeroed == 0


def test_a_gradient_of_zero_has_no_direction() -> None:
    found = only([1.0, 0, 0, 0], [0.0, 0, 0, 0])
    assert math.isnan(found.cosine)
    assert math.isnan(found.ratio)


def test_share_is_of_the_norm_of_all() -> None:
    both = [3.0, 0, 0, 0], [4.0, 0, 0, 0]
    found = witness(*both).gradients_beside(witness(*both))
    assert [each.share for each in found] == pytest.approx([0.6, 0.8])


def test_what_one_arm_lacks_is_left_out_and_keeps_the_others_numbers() -> None:
    ones = [1.0] * 4
    found = witness(None, ones, ones).gradients_beside(witness(ones, ones, None))
    assert [each.parameter for each in found] == [1]


def test_arms_with_other_parameters_are_not_compared() -> None:
    ones = [1.0] * 4
    assert witness(ones).gradients_beside(witness(ones, ones)) == ()


def test_a_fused_optimizers_gradient_is_what_it_makes_of_it() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.tensor([8.0, 4.0])
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.grad_scale = torch.tensor(4.0)
    assert seen_by(optimizer, parameter).tolist() == [2.0, 1.0]
    assert parameter.grad.tolist() == [8.0, 4.0]


def test_a_gradient_is_kept_as_it_was() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.ones(2)
    kept = seen_by(torch.optim.SGD([parameter], lr=0.1), parameter)
    parameter.grad.zero_()
    assert kept.tolist() == [1.0, 1.0]


def test_a_sparse_gradient_is_not_looked_at() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    assert seen_by(torch.optim.SGD(table.parameters(), lr=0.1), table.weight) is None


def outputs(fp32, amp):
    def of(values):
        seen = Witness()
        for path, value in values:
            seen.module_left(Call(nn.Identity(), path, again=False), value)
        return seen

    return of(amp).outputs_beside(of(fp32))


def test_outputs_are_compared_relative_to_fp32_in_the_order_of_the_calls() -> None:
    one, two = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])
    found = outputs([("b", one), ("a", two)], [("b", one), ("a", two * 1.1)])
    assert [(each.module, each.largest) for each in found] == [("b", 4.0), ("a", 10.0)]
    assert [each.distance for each in found] == pytest.approx([0, 0.1])


def test_of_a_module_the_first_output_counts_and_its_first_tensor() -> None:
    ones = torch.ones(2)
    found = outputs(
        [("a", {"ids": torch.arange(2), "logits": (ones, 9 * ones)}), ("a", 5 * ones)],
        [("a", {"ids": torch.arange(2), "logits": (ones, ones)})],
    )
    assert [(each.module, each.distance) for each in found] == [("a", 0.0)]


def test_what_only_one_arm_calls_or_shapes_otherwise_is_left_out() -> None:
    ones = torch.ones(2)
    assert outputs([("a", ones), ("b", ones)], [("c", ones), ("b", torch.ones(3))]) == ()


def test_of_a_large_output_a_sample_is_kept_and_the_largest_of_all() -> None:
    large = torch.zeros(100 * SAMPLE + 7)
    large[5] = -70000.0
    seen = Witness()
    seen.module_left(Call(nn.Identity(), "a", again=False), large)
    assert seen._outputs["a"].numel() <= SAMPLE
    [found] = seen.outputs_beside(seen)
    assert found.largest == 70000.0


def test_a_recomputed_module_is_not_looked_at_again() -> None:
    seen = Witness()
    seen.module_left(Call(nn.Identity(), "a", again=True), torch.ones(2))
    assert seen.outputs_beside(seen) == ()


def test_modules_tell_it_what_they_return() -> None:
    model, seen = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), Witness()
    with ModuleStack(left=seen.module_left):
        model(torch.ones(1, 2))
    assert [each.module for each in seen.outputs_beside(seen)] == ["0", "1", "Sequential"]


class Doubling(torch.nn.Module):
    """Changes in place what it is given, as ReLU(inplace=True) does."""

    def forward(self, x):
        return x.mul_(2)


@pytest.mark.parametrize(
    "behind", [torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.5, inplace=True), Doubling()]
)
def test_what_follows_in_place_does_not_change_what_a_module_returned(behind) -> None:
    first = torch.nn.Linear(4, 4)
    x = torch.randn(3, 4)
    plain, followed = Witness(), Witness()
    with torch.no_grad():
        with ModuleStack(left=plain.module_left):
            first(x)
        with ModuleStack(left=followed.module_left):
            behind(first(x))
    [output] = [each for each in followed.outputs_beside(plain) if each.module == "Linear"]
    assert output.distance == 0
