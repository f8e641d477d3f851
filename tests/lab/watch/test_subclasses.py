"""Tensors that are a subclass: what they hold is looked at, and what can't be ends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from pytest_amp.lab.arm import Arm
from tests.helpers.lab import TORCH, codes, measure, train


class NoAny(torch.Tensor):
    """Has all but one operator, as an 8-bit optimizer's state."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.any, torch.any):
            raise NotImplementedError("NoAny has no any")
        return super().__torch_function__(func, types, args, kwargs or {})


class Quantised(torch.Tensor):
    """Wraps its codes and a scale, and knows no operator but the one that sets it to zero."""

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Quantised:
        made: Quantised = torch.Tensor._make_wrapper_subclass(cls, codes.shape)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, _: Any, size: Any, stride: Any) -> Quantised:
        return Quantised(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Quantised(args[0].codes, args[0].scale)
        raise NotImplementedError(f"Quantised has no {func}")


class Opaque(torch.Tensor):
    """Wraps something, and does not say what."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Opaque:
        made: Opaque = torch.Tensor._make_wrapper_subclass(cls, held.shape)
        made.held = held  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = tree_map(lambda each: getattr(each, "held", each), (args, kwargs or {}))
        return func(*unwrapped[0], **unwrapped[1])


class Stateful(torch.optim.SGD):
    """Keeps a state of some kind beside its own."""

    kind: Callable[[torch.Tensor], torch.Tensor]

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                if param not in self.state:
                    self.state[param]["kept"] = type(self).kind(torch.zeros_like(param))
        return super().step(closure)


def heedless(arm: Arm, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Any]) -> Any:
    """Steps whatever the scaler says of an overflow."""
    states = torch.amp.grad_scaler.OptState

    def step() -> Any:
        optimizer.zero_grad()
        with arm.autocast():
            loss = loss_of()
        arm.scaler.scale(loss).backward()
        if arm.scaler.is_enabled():
            arm.scaler.unscale_(optimizer)
            optimizer.step()
            arm.scaler._per_optimizer_states[id(optimizer)]["stage"] = states.STEPPED
            arm.scaler.update()
        else:
            optimizer.step()
        return loss

    return step


def state(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return {
        "plain": lambda tensor: tensor,
        "as_subclass": lambda tensor: tensor.as_subclass(NoAny),
        "wrapper": lambda tensor: Quantised(tensor.to(torch.int64), torch.zeros(1)),
        "opaque": Opaque,
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "as_subclass", "wrapper", "opaque"])
@pytest.mark.parametrize("healthy", [True, False])
def test_the_overflow_drill_bears_state_of_any_kind(kind: str, healthy: bool) -> None:
    def setup(arm: Arm) -> Callable[[], Any]:
        model = nn.Linear(32, 10)
        own = type("Own", (Stateful,), {"kind": staticmethod(state(kind))})
        optimizer = own(model.parameters(), 0.1)
        x, y = torch.randn(16, 32), torch.randint(10, (16,))
        drive = train if healthy else heedless
        return drive(arm, optimizer, lambda: F.cross_entropy(model(x), y))  # type: ignore[operator]

    report = measure(setup, dtype="float16")
    assert report.notes == ()
    assert codes(report) == ([] if healthy else ["AMP206"])


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    if TORCH < (2, 7):
        pytest.skip("fully_shard runs on no CPU before torch 2.7")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded(arm: Arm, load: torch.dtype = torch.float32) -> tuple[nn.Module, Any, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1)).to(load)
    policy = MixedPrecisionPolicy(
        param_dtype=arm.dtype if arm.enabled else None, reduce_dtype=torch.float32
    )
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
    x = torch.randn(64, 32)
    return model, x, x.mean(1, keepdim=True)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_in_shards_are_measured_on_one_rank(dtype: str) -> None:
    def setup(arm: Arm) -> Callable[[], Any]:
        model, x, y = sharded(arm)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return train(arm, optimizer, lambda: F.mse_loss(model(x).float(), y))  # type: ignore[no-any-return]

    report = measure(setup, dtype=dtype)
    assert report.verdict == "pass"
    assert codes(report) == []
    assert report.notes == ()
    assert report.coverage is not None
    assert report.coverage > 0.9
    assert report.noise_floor is not None
    assert report.noise_floor > 0  # the shards were nudged


@pytest.mark.usefixtures("one_rank")
def test_a_fault_on_parameters_in_shards_is_found() -> None:
    def setup(arm: Arm) -> Callable[[], Any]:
        model, x, y = sharded(arm)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def loss_of() -> torch.Tensor:
            found = model(x).float()
            if arm.enabled:
                found.register_hook(lambda grad: 3 * grad)
            return F.mse_loss(found, y)

        return train(arm, optimizer, loss_of)  # type: ignore[no-any-return]

    assert "AMP304" in codes(measure(setup, dtype="bfloat16"))


@pytest.mark.usefixtures("one_rank")
def test_shards_that_are_kept_in_half_are_found() -> None:
    def setup(arm: Arm) -> Callable[[], Any]:
        model, x, y = sharded(arm, arm.dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        return train(arm, optimizer, lambda: F.mse_loss(model(x.to(arm.dtype)).float(), y))  # type: ignore[no-any-return]

    assert codes(measure(setup, dtype="bfloat16")) == ["AMP102"]
