"""float32 steps with a reduced dtype's rounding, in their products and nowhere else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pytest_amp.lab.watch.rounding import RoundedProducts

DTYPES = [torch.bfloat16, torch.float16]


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype).float()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_has_rounded_operands_and_a_rounded_result_in_float32(dtype) -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with RoundedProducts(dtype):
        product = a @ b
    assert product.dtype is torch.float32
    assert torch.equal(product, rounded(rounded(a, dtype) @ rounded(b, dtype), dtype))


def test_the_backward_pass_is_rounded_too() -> None:
    x, weight = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)
    with RoundedProducts(torch.bfloat16):
        F.linear(x, weight).sum().backward()
    assert torch.equal(weight.grad, rounded(weight.grad, torch.bfloat16))
    weight.grad = None
    F.linear(x, weight).sum().backward()
    assert not torch.equal(weight.grad, rounded(weight.grad, torch.bfloat16))


def test_what_is_no_product_and_what_is_no_float32_stay_as_they_are() -> None:
    x, wide, whole = torch.randn(64), torch.randn(4, 4).double(), torch.ones(4, 4).long()
    with RoundedProducts(torch.bfloat16):
        assert torch.equal(x.exp(), torch.exp(x.clone()))
        assert torch.equal(wide @ wide, wide.clone() @ wide)
        assert (whole @ whole).dtype is torch.int64


@pytest.mark.parametrize("value", [1e5, 1e-9])
def test_values_beyond_float16_s_range_stay_as_they_are(value) -> None:
    beyond = torch.full((2, 2), value)
    with RoundedProducts(torch.float16):
        assert torch.equal(beyond @ torch.eye(2), beyond)
