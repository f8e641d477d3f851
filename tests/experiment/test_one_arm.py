"""What is found out about an exception, by running both arms once more."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.errors import AmpError
from pytest_amp.lab.machine import device
from tests.helpers.lab import attempt, codes, train

HERE = Path(__file__).name


def step_of(loss_of):
    """A setup whose step is a linear layer and this function of its output and of the arm."""

    def setup(arm):
        model, x = nn.Linear(4, 4), torch.randn(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return train(arm, optimizer, lambda: loss_of(model(x), arm).float().square().mean())

    return setup


def put(source, destination=None):
    destination = torch.zeros(8, 4) if destination is None else destination
    destination[torch.arange(8)] = source
    return destination


def only(setup, **given):
    """The one finding, its place shortened to the source at that line."""
    report = attempt(setup, **given)
    assert (report.verdict, codes(report)) == ("error", ["AMP109"])
    [found] = report.findings
    file, _, line = found.location.rpartition(":")
    assert Path(file).name == HERE
    return found, Path(file).read_text("utf-8").splitlines()[int(line) - 1].strip()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_operator_is_named_with_the_dtypes_that_met_in_it(dtype) -> None:
    found, line = only(step_of(lambda out, _: put(out)), dtype=dtype)
    assert line == "destination[torch.arange(8)] = source"
    assert found.evidence["op"] == "aten::index_put_"
    assert found.evidence["dtypes"] == ["float32", dtype]


def test_what_raises_before_any_operator_runs_is_named_as_a_function() -> None:
    found, line = only(step_of(lambda out, _: out * float(out.detach().numpy().mean())))
    assert "out.detach().numpy()" in line
    assert (found.evidence["op"], found.evidence["dtypes"]) == ("torch.Tensor.numpy", ["bfloat16"])


class Product(torch.autograd.Function):
    """Decorated with neither."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return gradient @ weight, None


class Grouped(Product):
    """Raises in its forward pass."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return put(x)


@pytest.mark.parametrize(
    ("function", "place"),
    [
        (Product, "return gradient @ weight, None"),
        (Grouped, "destination[torch.arange(8)] = source"),
    ],
)
def test_a_custom_function_is_named_in_either_pass(function, place) -> None:
    found, line = only(step_of(lambda out, _: function.apply(out, torch.eye(4))))
    assert (found.evidence["function"], line) == (function.__name__, place)


def test_torchs_own_functions_are_not_named() -> None:
    checkpoint = torch.utils.checkpoint.checkpoint
    found, _ = only(step_of(lambda out, _: checkpoint(put, out, use_reentrant=True)))
    assert found.evidence["function"] is None


def test_a_setup_and_a_late_step_count_too() -> None:
    def in_setup(arm):
        with arm.autocast():
            put(torch.randn(8, 4) @ torch.eye(4))
        raise AssertionError

    with pytest.raises(RuntimeError):  # the fp32 arm's setup raises as well
        attempt(in_setup)

    def setup(arm):
        with arm.autocast():
            put(torch.randn(8, 4) @ torch.eye(4))
        return step_of(lambda out, _: out)(arm)

    only(setup)

    def late(arm):
        calls = iter(range(100))
        return step_of(lambda out, _: put(out) if next(calls) == 3 else out)(arm)

    report = attempt(late)
    assert (report.error.arm, report.error.phase, report.error.step) == ("amp", "parity", 4)
    assert codes(report) == ["AMP109"]


def test_an_exception_that_was_made_of_torchs_keeps_the_operator() -> None:
    def loss_of(out, _):
        try:
            return put(out)
        except RuntimeError as error:
            raise ValueError("layer 3 failed") from error

    found, _ = only(step_of(loss_of))
    assert found.evidence["op"] == "aten::index_put_"
    assert "raises ValueError" in found.message


def test_compiled_code_may_raise_only_as_compiled() -> None:
    def broken(graph, inputs):
        raise ValueError("no such kernel")

    def loss_of(out, arm):
        doubled = torch.compile(lambda x: x * 2, backend=broken if arm.enabled else "eager")
        return out * doubled(torch.ones(4))

    found, _ = only(step_of(loss_of))
    assert found.evidence["op"] is None


def test_a_librarys_line_is_beside_the_users() -> None:
    file = str(Path(sysconfig.get_path("purelib")) / "somelib" / "net.py")
    names = {"torch": torch}
    code = compile("def pool(x):\n    return torch.zeros(8, 4).index_add(0, I, x)", file, "exec")
    exec(code, names)
    names["I"] = torch.arange(8)
    found, line = only(step_of(lambda out, _: names["pool"](out)))
    assert 'names["pool"](out)' in line
    assert "at somelib/net.py:2" in found.message


def test_where_only_fp32_raises_it_is_said_of_fp32() -> None:
    found, _ = only(step_of(lambda out, _: F.linear(out.bfloat16(), torch.eye(4))))
    assert found.evidence["arm"] == "fp32"
    assert found.message.startswith("the fp32 arm raises RuntimeError")


def no_numbers(out, arm):
    raise ValueError(f"no numbers of {out.dtype}")


def its_own_assertion(out, arm):
    assert out.dtype is torch.float32
    return out


def an_assertion_of_torch_testing(out, arm):
    torch.testing.assert_close(out, out.float())
    return out


def an_error_of_ours(out, arm):
    if arm.enabled:
        raise AmpError("not like this")
    return out


def out_of_memory(out, arm):
    if arm.enabled:
        raise torch.OutOfMemoryError
    return out


TIMES = []


def once(out, arm):
    TIMES.append(1)
    if len(TIMES) == 1:
        raise ValueError("the network was down")
    return out


@pytest.mark.parametrize(
    ("loss_of", "kind"),
    [
        (no_numbers, ValueError),
        (its_own_assertion, AssertionError),
        (an_assertion_of_torch_testing, AssertionError),
        (an_error_of_ours, AmpError),
        (out_of_memory, torch.OutOfMemoryError),
        (once, ValueError),
    ],
)
def test_nothing_is_said_of(loss_of, kind) -> None:
    TIMES.clear()
    with pytest.raises(kind):
        attempt(step_of(loss_of))


def test_an_fp32_arm_that_ends_in_an_outcome_of_pytests_does_not_run() -> None:
    def loss_of(out, arm):
        return put(out) if arm.enabled else pytest.fail("no reference here")

    with pytest.raises(RuntimeError, match="Index put"):
        attempt(step_of(loss_of))


def test_nothing_is_run_again_where_other_ranks_wait(monkeypatch) -> None:
    monkeypatch.setattr("pytest_amp.experiment.one_arm.world_size", lambda: 2)
    assert device.world_size() == 1
    with pytest.raises(RuntimeError, match="Index put"):
        attempt(step_of(lambda out, _: put(out)))
