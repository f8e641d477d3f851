"""The operator record: FLOPs by dtype against numbers worked out by hand; it only looks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from pytest_amp import Arm
from pytest_amp.lab.phases import parity
from pytest_amp.lab.watch import operators
from pytest_amp.lab.watch.operators import OpRecord
from tests.helpers.lab import active, codes, measure, train, workbench

BF16 = torch.bfloat16


def record(step, trained=()):
    recorder = OpRecord(trained)
    with recorder.watching():
        step()
    return recorder.operators()


def flops(step):
    return dict(record(step).flops_by_dtype)


def under_autocast(function, dtype=BF16):
    def run():
        with torch.autocast("cpu", dtype=dtype):
            return function()

    return run


def forward_and_backward(function):
    return lambda: function().float().sum().backward()


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


# A product of (m, k) with (k, n) is 2 m k n FLOPs; its two gradients are as much again each.
LINEAR = 2 * 3 * 8 * 4
CONV = 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)
ATTENTION = 2 * 2 * (2 * 3) * 5 * 7 * 8
LSTM = 2 * (2 * 5) * 4 * 7 * (6 + 7)
GRU = 2 * (2 * 5) * 3 * 7 * (6 + 7)


def linear():
    layer, x = nn.Linear(8, 4), leaf(3, 8)
    return lambda: layer(x)


def conv():
    layer, x = nn.Conv2d(3, 5, 3, padding=1), leaf(2, 3, 6, 6)
    return lambda: layer(x)


def attention(dropout=0.0):
    q, k, v = leaf(2, 3, 5, 8), leaf(2, 3, 7, 8), leaf(2, 3, 7, 8)
    return lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def recurrent(kind):
    layer, x = kind(6, 7, batch_first=True), leaf(2, 5, 6)
    return lambda: layer(x)[0]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(linear(), LINEAR, id="linear"),
        pytest.param(conv(), CONV, id="conv"),
        pytest.param(attention(), ATTENTION, id="attention"),
        pytest.param(attention(0.5), ATTENTION, id="attention with dropout"),
        pytest.param(recurrent(nn.LSTM), LSTM, id="lstm"),
        pytest.param(recurrent(nn.GRU), GRU, id="gru"),
        pytest.param(lambda: torch.mv(torch.ones(4, 6), torch.ones(6)), 2 * 4 * 6, id="mv"),
        pytest.param(lambda: torch.dot(torch.ones(6), torch.ones(6)), 2 * 6, id="dot"),
        pytest.param(lambda: torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 240, id="bmm"),
    ],
)
def test_flops_of_a_forward_pass(step, expected) -> None:
    assert flops(step) == {"float32": expected}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(linear(), 3 * LINEAR, id="linear"),
        pytest.param(conv(), 3 * CONV, id="conv"),
        # the fused kernel's backward pass computes the scores again: five products for two
        pytest.param(attention(), ATTENTION + 5 * ATTENTION // 2, id="attention"),
        pytest.param(attention(0.5), 3 * ATTENTION, id="attention with dropout"),
        pytest.param(recurrent(nn.LSTM), 3 * LSTM, id="lstm"),
    ],
)
def test_the_backward_pass_is_counted(step, expected) -> None:
    assert flops(forward_and_backward(step)) == {"float32": expected}


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize(("step", "expected"), [(linear(), LINEAR), (conv(), CONV)])
def test_flops_count_for_the_dtype_that_autocast_runs_them_in(step, expected, dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    assert flops(forward_and_backward(under_autocast(step, dtype))) == {name: 3 * expected}


def test_a_part_kept_in_float32_counts_as_float32() -> None:
    first, second, x = nn.Linear(8, 4), nn.Linear(4, 4), torch.randn(3, 8)

    def step():
        with torch.autocast("cpu", dtype=BF16):
            h = first(x)
            with torch.autocast("cpu", enabled=False):
                return second(h.float())

    assert flops(step) == {"bfloat16": LINEAR, "float32": 2 * 3 * 4 * 4}


def test_an_embedding_has_no_flops_and_is_not_unknown() -> None:
    layer = nn.Embedding(10, 4)
    seen = record(forward_and_backward(lambda: layer(torch.tensor([1, 2, 3]))))
    assert seen.flops == 0
    assert seen.unknown == ()


def test_sparse_gradients_are_no_obstacle() -> None:
    layer, head = nn.Embedding(10, 8, sparse=True), nn.Linear(8, 4)
    optimizer = torch.optim.SparseAdam(layer.parameters())

    def step():
        head(layer(torch.tensor([1, 2, 3]))).sum().backward()
        optimizer.step()

    assert record(step).flops == 3 * LINEAR
    assert layer.weight.grad.is_sparse


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_counted_by_their_elements(layout) -> None:
    layer = nn.Linear(8, 4)
    rows = torch.nested.nested_tensor([torch.randn(1, 8), torch.randn(2, 8)], layout=layout)
    seen = record(lambda: layer(rows))
    assert dict(seen.flops_by_dtype) == {"float32": LINEAR}
    assert seen.unknown == ()


def test_gradients_of_nested_tensors_count_only_where_they_are_wanted() -> None:
    layer = nn.Linear(8, 4)
    rows = torch.nested.nested_tensor([torch.randn(1, 8), torch.randn(2, 8)], layout=torch.jagged)
    assert flops(forward_and_backward(lambda: layer(rows).values())) == {"float32": 2 * LINEAR}


@pytest.fixture
def custom_op():
    library = torch.library.Library("pytest_amp_test", "DEF")
    library.define("gram(Tensor x) -> Tensor")
    library.impl("gram", lambda x: x @ x.t(), "CPU")
    yield torch.ops.pytest_amp_test.gram
    library._destroy()


def test_a_custom_operator_makes_coverage_unknown_and_is_named(custom_op) -> None:
    def setup(arm):
        layer = nn.Linear(8, 4)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        x = torch.randn(3, 8)
        with torch.no_grad():
            custom_op(x)
        return train(arm, optimizer, lambda: layer(x).float().mean() + custom_op(x).mean())

    report = measure(setup, min_coverage=0.5)
    assert report.coverage is None
    gate = report.gate("coverage")
    assert gate.verdict == "not_gated"
    assert "pytest_amp_test::gram" in gate.reason


@pytest.mark.parametrize(("reduced", "found"), [(True, []), (False, ["AMP101"])])
def test_autocast_around_nothing_is_told_beside_custom_operators_in_float32(
    custom_op, reduced, found
) -> None:
    """What such an operator computed in is not known, but what it was given is."""

    def setup(arm):
        layer = nn.Linear(8, 4)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        x = torch.randn(3, 8)

        def step():
            optimizer.zero_grad()
            custom_op(x.to(arm.dtype) if reduced else x)
            loss = layer(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return step

    report = measure(setup)
    assert report.coverage is None
    assert codes(report) == found


@pytest.mark.parametrize("name", ["fp32", "amp"])
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_losses_and_parameters_are_bit_identical_with_and_without_inspection(name, dtype) -> None:
    layers = []

    def setup(arm):
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
        layers.append(layer)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
        x = torch.randn(4, 6, 16)
        return train(arm, optimizer, lambda: F.mse_loss(layer(x), x))

    def losses_and_weights(inspected):
        with active(workbench(setup, dtype), name) as resident:
            losses = []
            for index in range(5):
                if index == inspected:
                    with OpRecord().watching():
                        losses.append(resident.step().item())
                else:
                    losses.append(resident.step().item())
            return losses, [p.detach().clone() for p in layers[-1].parameters()]

    plain, plain_weights = losses_and_weights(None)
    seen, seen_weights = losses_and_weights(2)
    assert plain == seen
    assert len(set(plain)) == 5
    assert all(map(torch.equal, plain_weights, seen_weights))


def test_an_exception_in_the_inspected_step_leaves_nothing_behind() -> None:
    enter = torch.autocast.__enter__
    with pytest.raises(ZeroDivisionError):
        record(lambda: 1 / 0)
    assert torch.autocast.__enter__ is enter
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


# Random numbers.


def drawn(function, dtype):
    torch.manual_seed(0)
    x = torch.ones(4, 2, 8, 16, dtype=dtype)
    return record(lambda: function(x))


def test_dropout_draws_in_the_dtype_of_its_input_and_the_same_mask_on_a_cpu() -> None:
    dropout = lambda x: F.dropout(x, 0.3)  # noqa: E731
    fp32, amp = drawn(dropout, torch.float32), drawn(dropout, BF16)
    assert fp32.random_dtypes == {"float32"}
    assert amp.random_dtypes == {"bfloat16"}
    assert fp32.draws == amp.draws
    assert len(fp32.draws) == 1


def test_another_mask_of_as_many_elements_is_another_draw() -> None:
    def masks(x):
        torch.bernoulli(torch.eye(4)[0])
        torch.bernoulli(torch.eye(4)[1])

    first, second = drawn(masks, torch.float32).draws
    assert first != second


def test_noise_like_a_reduced_tensor_is_another_draw() -> None:
    assert drawn(torch.randn_like, torch.float32).draws != drawn(torch.randn_like, BF16).draws


def test_attention_without_dropout_draws_nothing() -> None:
    def attend(dropout):
        return lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=dropout)

    assert drawn(attend(0.0), BF16).random_dtypes == frozenset()
    assert drawn(attend(0.5), BF16).random_dtypes != frozenset()


def test_a_step_that_draws_nothing_has_no_random_dtypes() -> None:
    assert record(forward_and_backward(under_autocast(linear()))).random_dtypes == frozenset()


# What put FLOPs into reduced precision.


def test_enabled_autocast_regions_are_counted_and_disabled_ones_are_not() -> None:
    def step():
        with torch.autocast("cpu", dtype=BF16), torch.autocast("cpu", enabled=False):
            pass
        torch.autocast("cpu", dtype=BF16)(lambda: None)()  # as a decorator

    assert record(step).autocast_entered == 2
    assert record(linear()).autocast_entered == 0


def test_weights_kept_in_bfloat16_are_told_from_casts_of_float32_weights() -> None:
    x = torch.randn(3, 8)
    kept = nn.Linear(8, 4).to(BF16)
    plain = nn.Linear(8, 4)
    assert record(lambda: kept(x.to(BF16))).reduced_weights
    assert not record(lambda: F.linear(x.to(BF16), plain.weight.to(BF16))).reduced_weights
    assert not record(under_autocast(lambda: plain(x))).reduced_weights
    assert not record(lambda: plain(x)).reduced_weights
    batch = x.to(BF16)  # is there before the step too, and no weight
    cast_by_hand = lambda: F.linear(batch, plain.weight.to(BF16))  # noqa: E731
    assert not record(cast_by_hand, plain.parameters()).reduced_weights


def test_bytes_are_those_of_the_tensors_that_operators_make() -> None:
    x = torch.randn(1000)
    assert dict(record(lambda: x.to(BF16).mul(2)).bytes_by_dtype) == {"bfloat16": 2 * 2 * 1000}
    assert dict(record(lambda: x.view(10, 100).t()).bytes_by_dtype) == {}


# The rows: which call, where, in what.


def rows(step, **wanted):
    """The rows of a step that have these values."""
    return [
        row
        for row in record(step).rows
        if all(getattr(row, name) == value for name, value in wanted.items())
    ]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x).relu()


def test_each_call_is_laid_to_its_module_backward_too() -> None:
    model, x = nn.Sequential(Block(), Block(), nn.Linear(8, 1)), torch.randn(4, 8)
    seen = rows(lambda: model(x).sum().backward())
    products = [(row.module, row.phase, row.count) for row in seen if row.flops]
    assert products == [
        ("0.inner", "forward", 1),
        ("1.inner", "forward", 1),
        ("2", "forward", 1),
        ("2", "backward", 2),
        ("1.inner", "backward", 2),
        ("0.inner", "backward", 1),  # nothing wants the gradient of x
    ]
    assert [row.module for row in seen if row.op == "aten::threshold_backward"] == ["1", "0"]


def test_a_second_models_paths_begin_with_its_class() -> None:
    first, second, x = nn.Sequential(Block()), nn.Sequential(Block()), torch.randn(4, 8)
    products = rows(lambda: second(first(x)), op="aten::addmm")
    assert [row.module for row in products] == ["0.inner", "Sequential#2.0.inner"]


def test_a_checkpointed_segment_is_told_from_its_first_run() -> None:
    model, x = nn.Sequential(Block(), Block()), torch.randn(4, 8)

    def step():
        h = torch.utils.checkpoint.checkpoint(model[0], x, use_reentrant=False)
        model[1](h).sum().backward()

    products = [(row.module, row.phase) for row in rows(step) if row.op == "aten::addmm"]
    assert products[0][1] == "forward"
    assert products[-1] == (products[0][0], "recompute")


def test_an_optimizers_own_arithmetic_is_an_update() -> None:
    layer = nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)

    def step():
        layer(torch.randn(3, 8)).sum().backward()
        optimizer.step()

    assert {row.module for row in rows(step, phase="update")} == {None}
    assert "aten::addcdiv_" in {row.op for row in rows(step, phase="update")}
    assert "aten::addcdiv_" not in {row.op for row in rows(step, phase="forward")}


def test_casts_are_rows_with_the_dtype_that_they_come_from_and_go_to() -> None:
    layer, x = nn.Linear(8, 4, bias=False), torch.randn(3, 8)
    casts = [row for row in rows(under_autocast(lambda: layer(x))) if row.is_cast]
    assert sum(row.count for row in casts) == 2  # the input and the weight
    assert {(row.dtype, row.out, row.module) for row in casts} == {
        ("float32", "bfloat16", "Linear")
    }
    assert sum(row.bytes for row in casts) == 2 * (3 * 8 + 8 * 4)


def test_an_expanded_tensor_that_is_cast_is_told_by_how_far_it_stretches() -> None:
    mask = torch.zeros(1, 1, 8, 8).expand(16, 4, 8, 8)
    [cast] = [row for row in rows(lambda: mask.to(BF16)) if row.is_cast]
    assert (cast.stretch, cast.largest) == (64, 2 * 16 * 4 * 64)


def test_whether_autocast_was_in_force_is_told_of_each_call_and_of_its_gradient() -> None:
    first, second, x = nn.Linear(8, 8), nn.Linear(8, 4), torch.randn(3, 8)

    def step():
        with torch.autocast("cpu", dtype=BF16):
            h = first(x)
            with torch.autocast("cpu", enabled=False):
                h = second(h.float())
        h.sum().backward()

    products = [(row.module, row.phase, row.autocast) for row in rows(step) if row.flops]
    assert products == [
        ("Linear", "forward", True),
        ("Linear#2", "forward", False),
        ("Linear#2", "backward", False),
        ("Linear", "backward", True),
    ]


def test_the_users_line_is_named() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    line = sys._getframe().f_lineno + 1
    [product] = rows(lambda: layer(x), op="aten::addmm")
    assert product.location == f"tests/lab/watch/test_operators.py:{line}"


class _Exp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].exp()


class _Activation(nn.Module):
    def forward(self, x):
        return _Exp.apply(x).relu()


def test_a_gradient_is_not_laid_to_a_later_module_whose_first_calls_need_none() -> None:
    model = nn.Sequential(nn.Linear(4, 4), _Activation(), nn.Dropout(0.5))
    seen = record(lambda: model(torch.randn(2, 4)).sum().backward())
    modules = {row.op: row.module for row in seen.rows if row.phase == "backward"}
    assert modules["aten::threshold_backward"] == "1"
    assert modules["aten::exp"] == "1"  # the custom function's


def test_backward_passes_inside_an_autocast_region_are_counted() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    assert record(under_autocast(lambda: layer(x).sum().backward())).backward_under_autocast == 1
    assert (
        record(forward_and_backward(under_autocast(lambda: layer(x)))).backward_under_autocast == 0
    )


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.t().to(grad.dtype), x.t().to(grad.dtype) @ grad


def test_a_custom_functions_calls_are_its_own_in_both_directions() -> None:
    weight, x = leaf(8, 4), torch.randn(3, 8)

    def step():
        Product.apply(x, weight).sum().backward()

    products = [(row.phase, row.function) for row in rows(step) if row.flops]
    assert set(products) == {("forward", "Product"), ("backward", "Product")}
    assert "apply" in vars(torch.autograd.Function)
    assert record(linear()).rows[0].function is None


# Stale casts.


def two_updates(inside_one_region):
    """Two optimizer steps, in one autocast region or in one each."""
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)

    def update():
        layer(x).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def step():
        if inside_one_region:
            with torch.autocast("cpu", dtype=BF16):
                update()
                update()
        else:
            for _ in range(2):
                with torch.autocast("cpu", dtype=BF16):
                    update()

    return step


def test_a_weight_whose_cast_is_older_than_its_update_is_found() -> None:
    assert [each.module for each in record(two_updates(inside_one_region=True)).stale] == ["Linear"]
    assert record(two_updates(inside_one_region=False)).stale == ()


def test_what_is_made_out_of_sight_where_a_cast_was_is_no_cast() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)

    unseen = []

    def step():
        for _ in range(10):
            with _disable_current_modes():  # as a kernel makes what it returns
                new = [torch.zeros(0, dtype=BF16) for _ in range(1000)]
            for tensor in new:
                tensor.sum()
            unseen.extend(new)  # so that the next ones are elsewhere
            with torch.autocast("cpu", dtype=BF16):
                layer(x).float().square().sum().backward()
            optimizer.step()

    assert record(step).stale == ()


def test_a_region_that_was_never_left_is_found_in_the_step_after_the_recorded_one() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)

    def step():
        layer(x).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    recorder = OpRecord()
    with torch.autocast("cpu", dtype=BF16), recorder.watching():
        step()
        before = recorder.operators()
        recorder.next_step()
        step()
    after = recorder.operators()
    assert before.stale == ()
    assert [each.module for each in after.stale] == ["Linear"]
    assert after.flops == before.flops


def test_one_cast_of_a_weight_that_is_used_twice_is_not_stale() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    assert record(forward_and_backward(under_autocast(lambda: layer(layer(x))))).stale == ()


class Orthogonal(torch.optim.SGD):
    """Computes its updates in bfloat16, as Muon does, with random numbers of its own."""

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim == 2:
                    update = param.grad.to(BF16)
                    update = update @ update.T @ update + torch.rand_like(update)
                    param.data.add_(update.float(), alpha=-1e-4)
        return super().step(closure)


def muon(parameters):
    return torch.optim.Muon(parameters, lr=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: Orthogonal(parameters, lr=1e-3),
        pytest.param(
            muon, marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="no Muon")
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_an_optimizer_computes_is_its_own(make, dtype) -> None:
    def setup(arm):
        model = nn.Linear(16, 16, bias=False)
        x, y = torch.randn(8, 16), torch.randn(8, 16)
        optimizer = make(model.parameters())
        return train(arm, optimizer, lambda: F.mse_loss(model(x).float(), y))

    report = measure(setup, dtype=dtype)
    assert codes(report) == []
    assert report.coverage == 1
    assert set(report.fp32.flops_by_dtype) == {"float32"}


def test_a_half_precision_step_is_told_from_its_optimizer() -> None:
    def setup(arm):
        model = nn.Linear(16, 16, bias=False)
        x, y = torch.randn(8, 16), torch.randn(8, 16)
        optimizer = Orthogonal(model.parameters(), lr=1e-3)

        def step():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=BF16):
                loss = F.mse_loss(model(x).float(), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    assert codes(measure(setup)) == ["AMP004"]


# The sizes that a matrix kernel's alignment depends on


def dims(step):
    rows = record(step).rows
    return sorted({size for row in rows if row.flops for size in row.dims})


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda: F.linear(torch.ones(100, 64), torch.ones(48, 64)), [48, 64]),
        (lambda: torch.ones(100, 64) @ torch.ones(64, 50257), [64, 50257]),
        (lambda: torch.bmm(torch.ones(100, 33, 64), torch.ones(100, 64, 48)), [48, 64]),
        (lambda: torch.ones(64, 33).T @ torch.ones(64, 40), [33, 40]),
        (lambda: F.conv2d(torch.ones(100, 8, 9, 9), torch.ones(16, 8, 3, 3)), [8, 16]),
        (lambda: F.conv1d(torch.ones(100, 8, 9), torch.ones(16, 8, 3)), [8, 16]),
        (lambda: F.conv3d(torch.ones(3, 8, 9, 9, 9), torch.ones(16, 8, 3, 3, 3)), [8, 16]),
        (
            lambda: F.scaled_dot_product_attention(*(torch.ones(10, 12, 77, 64),) * 3),
            [64],
        ),
    ],
)
def test_rows_examples_and_heads_are_no_matter_of_alignment(step, expected) -> None:
    assert dims(step) == expected


def test_a_convolution_s_backward_is_about_its_channels_too() -> None:
    layer, x = nn.Conv2d(8, 16, 3), leaf(100, 8, 9, 9)
    assert dims(lambda: layer(x).sum().backward()) == [8, 16]


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_regions_are_known_by_their_device() -> None:
    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16), torch.autocast("cpu", enabled=False):
            torch.ones(2).mul(2)

    record = OpRecord()
    with record.watching():
        step()
    assert record.operators().autocast_devices == ("cuda", "cpu")


@pytest.mark.parametrize("package", ["accelerate.optimizer", "ignite.engine", "my.own"])
def test_a_framework_s_loop_is_known_by_its_code(package: str) -> None:
    source = "def train(loss):\n    loss().backward()\n"
    library: dict[str, Any] = {"__name__": package}
    exec(compile(source, "library.py", "exec"), library)
    weight = torch.ones(2, requires_grad=True)
    record = OpRecord()
    with record.watching():
        library["train"](lambda: weight.square().sum())
    expected = None if package == "my.own" else package.partition(".")[0]
    assert record.operators().framework == expected


class Clock:
    """Moves by what the operators that are called take: a product in half takes a second."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_an_operator_that_is_slow_in_one_dtype_is_named_in_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    for watched in (operators, parity):
        monkeypatch.setattr(watched, "perf_counter", clock)

    @torch.library.custom_op("pytest_amp_tests::product", mutates_args=())
    def product(x: torch.Tensor) -> torch.Tensor:
        clock.now_s += 1.0 if x.dtype is torch.float16 else 0.01
        return x.clone()

    product.register_autograd(lambda _, grad: grad)

    def setup(arm: Arm) -> Callable[[], Any]:
        layer = nn.Linear(8, 8)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        x = torch.randn(4, 8)
        return train(arm, optimizer, lambda: product(layer(x)).float().square().mean())

    (note,) = measure(setup, dtype="float16").notes
    assert "an amp step takes 100 times as long as the other arm's here (1.00 s)" in note
    assert "no fast kernel for pytest_amp_tests::product in float16;" in note
    assert measure(setup, dtype="bfloat16").notes == ()
