"""Tensors of every kind: what holds their values is found, and what can't be told ends nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.amp.grad_scaler import OptState
from torch.func import functional_call, vmap
from torch.optim import SGD

from pytest_amp.lab.phases.parity import nudge
from pytest_amp.lab.scaling.optimizers import Trained
from pytest_amp.lab.watch.fingerprint import digest, digest_in_any_dtype, sample
from pytest_amp.lab.watch.first_nonfinite import _badness
from pytest_amp.lab.watch.numerics import seen_by
from pytest_amp.lab.watch.tensors import floating, plain_parts, size, storage, values
from tests.helpers.lab import TORCH, codes, measure, train

INF = float("inf")


class Refusing(torch.Tensor):
    """Has the values, and does nothing with them."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"unimplemented operator {func}")


class Dispatching(torch.Tensor):
    """The same, further down."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"unimplemented operator {func}")


class Packed(torch.Tensor):
    """A wrapper, as quantized states are: codes and a scale, and no operator but `zeros_like`."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, shape, stride):
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"unimplemented operator {func}")


class Opaque(Packed):
    """One that does not even flatten."""

    def __tensor_flatten__(self):
        raise RuntimeError("no")


class Outer(Packed):
    """A wrapper of wrappers; its scale is not there."""

    def __tensor_flatten__(self):
        return ["codes", "scale"], None


def packed(numbers, kind=Packed):
    codes = numbers.clone().to(torch.uint8)
    return kind(codes, torch.ones(1))


def without_storage():
    return torch.Tensor._make_wrapper_subclass(Dispatching, (3,))


def fake():
    with FakeTensorMode():
        return torch.ones(3)


NUMBERS = torch.arange(6.0).reshape(2, 3)
KNOWN = {
    "plain": NUMBERS.clone,
    "parameter": lambda: nn.Parameter(NUMBERS.clone()),
    "a view of another class": lambda: NUMBERS.clone().as_subclass(Refusing),
    "one with its own dispatch": lambda: torch.Tensor._make_subclass(Dispatching, NUMBERS.clone()),
    "in a wrapper": lambda: Outer(NUMBERS.clone(), None),
    "in a wrapper's wrapper": lambda: Outer(Outer(NUMBERS.clone(), None), None),
    "needs a gradient": lambda: NUMBERS.clone().requires_grad_() * 1,
}
UNKNOWN = {
    "no storage": without_storage,
    "does not flatten": lambda: packed(NUMBERS, Opaque),
    "wraps such a one": lambda: Outer(packed(NUMBERS, Opaque), None),
    "fake": fake,
    "meta": lambda: NUMBERS.to("meta"),
    "compressed": NUMBERS.to_sparse_csr,
}
UNKNOWN_KINDS = pytest.mark.parametrize("kind", UNKNOWN)


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_values_are_found_in_the_tensors_own_memory(kind) -> None:
    tensor = KNOWN[kind]()
    [part] = plain_parts(tensor)
    assert type(part) is torch.Tensor
    assert not part.requires_grad
    assert torch.equal(part, NUMBERS)
    assert size(tensor) == 24
    assert storage(tensor) == storage(part)
    part[0, 0] = 7.0
    assert plain_parts(tensor)[0][0, 0] == 7


@UNKNOWN_KINDS
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_what_cant_be_looked_into_is_unknown_and_nobody_stumbles_over_it(kind) -> None:
    tensor = UNKNOWN[kind]()
    assert plain_parts(tensor) is None
    assert floating(tensor) == []
    assert values(tensor) is None
    assert sample(tensor) == ()
    assert digest([tensor]) == digest([tensor])
    assert ":" not in digest([tensor])[0]
    assert _badness(tensor) == 0
    nudge([tensor], torch.bfloat16, 0)


def test_of_a_sparse_tensor_indices_and_values_are_told() -> None:
    indices, numbers = plain_parts(torch.eye(2).to_sparse())
    assert indices.tolist() == [[0, 1], [0, 1]]
    assert numbers.tolist() == [1, 1]
    assert values(torch.eye(2).to_sparse()).tolist() == [1, 1]


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_have_a_digest(layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=layout)
    assert digest([nested]) == digest([nested])
    assert digest_in_any_dtype(nested)


def test_digests_tell_the_values_inside_apart_and_are_those_of_plain_tensors() -> None:
    assert digest([Outer(NUMBERS, None)]) == digest([NUMBERS])
    assert digest([packed(NUMBERS)]) != digest([packed(NUMBERS + 1)])
    assert sample(NUMBERS.as_subclass(Refusing)) == sample(NUMBERS)
    assert sample(packed(NUMBERS)) == ()  # its scale alone is no sample of it


@pytest.mark.parametrize("wrap", [lambda t: t.as_subclass(Refusing), lambda t: Outer(t, None)])
def test_what_is_not_finite_is_seen_inside(wrap) -> None:
    assert _badness(wrap(torch.tensor([1.0]))) == 0
    assert _badness(wrap(torch.tensor([1.0, INF]))) == 1
    assert _badness([wrap(torch.tensor([INF])), wrap(torch.tensor([float("nan")]))]) == 2


def test_complex_numbers_are_two_each() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert values(tensor).tolist() == values(tensor.conj().conj()).tolist() == [[1, 2], [3, -4]]
    assert values(tensor.conj()).tolist() == [[1, -2], [3, 4]]
    assert _badness(torch.tensor([complex(0, INF)])) == 1
    assert digest([tensor.conj()]) != digest([tensor])
    nudge([tensor], torch.bfloat16, 0)
    assert tensor.tolist() != [1 + 2j, 3 - 4j]


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_a_bytes_numbers_are_looked_at_too(kind) -> None:
    dtype = getattr(torch, kind)
    assert _badness(torch.ones(2).to(dtype)) == 0
    assert _badness(torch.tensor([float("nan")]).to(dtype)) == 2


def test_a_nudge_moves_what_is_inside() -> None:
    inside = torch.ones(4)
    nudge([Outer(inside, None)], torch.bfloat16, 0)
    assert set((inside - 1).abs().tolist()) == {torch.finfo(torch.bfloat16).eps}


def test_a_gradient_is_seen_inside() -> None:
    param = SimpleNamespace(grad=Outer(torch.full((2,), 8.0), None))
    assert seen_by(None, param).tolist() == [8, 8]


def test_the_bytes_of_optimizer_state_are_those_of_its_parts() -> None:
    param, trained = nn.Parameter(torch.ones(2, 3)), Trained()
    optimizer = SGD([param], lr=0.1)
    optimizer.state[param]["packed"] = packed(NUMBERS)
    trained.number(optimizer)
    assert trained.held()["optimizer state"] == 6 + 4  # codes of a byte, and the scale


# State that is no plain tensor, under the overflow drill.

STATES = {
    "plain": lambda zeros: zeros,
    "a view of another class": lambda zeros: zeros.as_subclass(Refusing),
    "its own dispatch": lambda zeros: torch.Tensor._make_subclass(Dispatching, zeros),
    "a wrapper": packed,
    "a wrapper that does not flatten": lambda zeros: packed(zeros, Opaque),
    "a wrapper without storage": lambda _: without_storage(),
    "an array": lambda zeros: zeros.numpy(),
    "a list": lambda zeros: [zeros],
    "float8": lambda zeros: zeros.to(torch.float8_e4m3fn),
}


class Keeping(SGD):
    """Makes its state in its first step; `self.state_of` says what of."""

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param not in self.state:
                    self.state[param]["kept"] = self.state_of(torch.zeros(param.shape))
        return super().step(closure)


def keeping(state, regardless):
    """A setup whose optimizer has such state, and steps whatever the scaler found."""

    def setup(arm):
        model, scaler = nn.Linear(32, 10), arm.scaler
        optimizer = Keeping(model.parameters(), 0.1)
        optimizer.state_of = STATES[state]
        x, y = torch.randn(16, 32), torch.randint(10, (16,))

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if regardless and scaler.is_enabled():
                scaler.unscale_(optimizer)
                optimizer.step()
                scaler._per_optimizer_states[id(optimizer)]["stage"] = OptState.STEPPED
            else:
                scaler.step(optimizer)
            scaler.update()
            return loss

        return step

    return setup


@pytest.mark.parametrize("state", STATES)
def test_a_step_on_an_overflow_is_found_whatever_its_optimizers_state_is(state) -> None:
    faulty = measure(keeping(state, regardless=True), dtype="float16")
    assert "AMP206" in codes(faulty)
    assert faulty.notes == ()
    healthy = measure(keeping(state, regardless=False), dtype="float16")
    assert (codes(healthy), healthy.notes, healthy.verdict) == ([], (), "pass")


@pytest.mark.parametrize("state", ["a wrapper", "a view of another class", "plain"])
def test_state_alone_that_changes_on_an_overflow_is_found_inside(state) -> None:
    class Counting(Keeping):
        def step(self, closure=None):
            loss = super().step(closure)
            for entry in self.state.values():
                plain_parts(entry["kept"])[0].add_(1)
            return loss

    def setup(arm):
        model, scaler = nn.Linear(32, 10), arm.scaler
        optimizer = Counting(model.parameters(), 0.0)
        optimizer.state_of = STATES[state]
        x = torch.randn(16, 32)

        def step():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            scaler.scale(loss).backward()
            if scaler.is_enabled():
                scaler.unscale_(optimizer)
                for param in model.parameters():
                    param.grad.nan_to_num_(0.0, 0.0, 0.0)
                optimizer.step()
                scaler._per_optimizer_states[id(optimizer)]["stage"] = OptState.STEPPED
            else:
                optimizer.step()
            scaler.update()
            return loss

        return step

    report = measure(setup, dtype="float16", max_loss_diff=None)
    [found] = [each for each in report.findings if each.code == "AMP206"]
    assert "kept of" in found.message


# Whole steps.


def per_sample(arm):
    """Losses of samples one by one, with modules called where values can't be read."""
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = SGD(model.parameters(), lr=0.01)

    def loss_of():
        def one(parameters, sample):
            return functional_call(model, parameters, (sample,)).float().square().mean()

        return vmap(one, (None, 0))(dict(model.named_parameters()), x).mean()

    return train(arm, optimizer, loss_of)


def nested(arm):
    model = nn.Linear(4, 1)
    x = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)])
    optimizer = SGD(model.parameters(), lr=0.01)
    return train(arm, optimizer, lambda: model(x).to_padded_tensor(0.0).float().square().mean())


@pytest.mark.parametrize("setup", [per_sample, nested])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_step_of_uncommon_tensors_is_measured(setup) -> None:
    report = measure(setup, dtype="bfloat16")
    assert (report.verdict, codes(report), report.notes) == ("pass", [], ())


# DTensors, on one rank.

distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


@pytest.fixture
def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def sharded(mesh, wrong=False, mixed=False, tensor_parallel=False):
    if TORCH < (2, 7) and not tensor_parallel:
        pytest.skip("fully_shard runs on no CPU before torch 2.7")

    def setup(arm):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
        if tensor_parallel:
            parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        elif mixed and arm.enabled:
            fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(arm.dtype, torch.float32))
        else:
            fully_shard(model, mesh=mesh)
        if wrong and arm.enabled:
            model[2].register_full_backward_hook(
                lambda _, grads, __: ((grads[0] * torch.linspace(0, 3, 64)).type_as(grads[0]),)
            )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        x, y = torch.randn(64, 32), torch.randint(4, (64,))
        if not mixed:
            return train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))

        def step():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    return setup


HOW = {"fsdp": {}, "fsdp's own precision": {"mixed": True}, "tp": {"tensor_parallel": True}}
SHARDED = pytest.mark.parametrize("how", HOW)


@distributed
@SHARDED
@pytest.mark.filterwarnings("ignore")
def test_sharded_parameters_are_measured_by_their_local_shards(mesh, how) -> None:
    report = measure(sharded(mesh, **HOW[how]), dtype="bfloat16")
    assert (report.verdict, codes(report), report.notes) == ("pass", [], ())
    assert report.coverage == 1
    assert report.noise_floor > 0  # they were nudged


@distributed
@pytest.mark.filterwarnings("ignore")
def test_sharded_parameters_go_through_the_drills(mesh) -> None:
    report = measure(sharded(mesh), dtype="float16")
    assert (report.verdict, codes(report), report.notes) == ("pass", [], ())


@distributed
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_gradient_of_a_sharded_parameter_is_found(mesh) -> None:
    assert "AMP304" in codes(measure(sharded(mesh, wrong=True), dtype="bfloat16"))


@distributed
@pytest.mark.filterwarnings("ignore")
def test_a_shards_bytes_place_and_digest_are_those_of_what_is_here(mesh) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = distribute_tensor(NUMBERS, mesh, [Shard(0)])
    assert digest([whole]) == digest([NUMBERS])
    assert size(whole) == 24
    assert storage(whole.t()) == storage(whole)
