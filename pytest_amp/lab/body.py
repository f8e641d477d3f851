"""Measure a test whose body is the forward pass and the loss: copy its fixtures for each arm."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.arm import Arm, Setup, Step
from pytest_amp.lab.scaling.scaler import AmpScaler, ScalerLog

__tracebackhide__ = unless_our_bug

WRITE_SETUP = (
    "write the whole step yourself instead: request amp_benchmark and call "
    "amp_benchmark(setup), where setup(arm) builds the model and returns the step"
)
SELF = "self"


class CopiedFixtures:
    """The fixture values of one test. Each arm gets a deep copy of them all together.

    Args:
        fixtures: the values by the fixtures' names.
        by_reference: the names of values that are shared and not copied, such as pytest's own.

    Raises:
        AmpError: a value can't be a step's input, or there is no optimizer; the message names the
            fixture.
    """

    def __init__(self, fixtures: Mapping[str, Any], by_reference: frozenset[str]) -> None:
        self._shared = {name: fixtures[name] for name in fixtures if name in by_reference}
        self._originals = {name: fixtures[name] for name in fixtures if name not in by_reference}
        for name, value in self._originals.items():
            _refuse(name, value)
        if not any(isinstance(leaf, Optimizer) for leaf in self._leaves()):
            raise AmpError(
                "no optimizer among the fixtures "
                f"({', '.join(fixtures) or 'there are none'}): add a fixture with a "
                f"torch.optim.Optimizer, or {WRITE_SETUP}"
            )

    def _leaves(self) -> Iterator[Any]:
        for name, value in self._originals.items():
            yield from held_by(name, value)

    def device(self) -> torch.device | None:
        """Return the device of the first parameter; None if the fixtures have none."""
        return next((tensor.device for _, tensor in self._trained()), None)

    def _trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in self._originals.items():
            for leaf in held_by(name, value):
                yield from ((name, tensor) for tensor in _parameters(leaf))

    def copied(self) -> dict[str, Any]:
        """Return all values, copied together, so that an optimizer's copy trains its model's copy.

        Raises:
            AmpError: a value can't be copied.
        """
        try:
            copies = _deepcopy(self._originals)
        except Exception as error:
            name, reason = self._uncopyable() or ("?", error)
            what = "" if isinstance(reason, _Uncopyable) else f"{type(reason).__name__}: "
            raise AmpError(
                f"the fixture {name!r} can't be copied for the two arms ({what}{reason}); "
                f"{WRITE_SETUP}"
            ) from error
        for name, value in copies.items():
            for leaf in held_by(name, value):
                if isinstance(leaf, LRScheduler):
                    _rewrap(leaf.optimizer)
        return {**copies, **self._shared}

    def _uncopyable(self) -> tuple[str, Exception] | None:
        for name, value in self._originals.items():
            try:
                _deepcopy(value)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
                return name, error
        return None

    def untouched(self) -> Callable[[], None]:
        """Return a check to call after a backward pass of the copies.

        The check raises `AmpError` if the gradients went to the originals instead.
        """
        before = [(name, tensor, tensor.grad) for name, tensor in self._trained()]

        def check() -> None:
            for name, tensor, grad in before:
                if tensor.grad is not grad:
                    raise AmpError(
                        f"the original of the fixture {name!r} was trained, not its copy: "
                        "something that the body calls (a closure, a patched forward, a lambda) "
                        f"still holds the original; {WRITE_SETUP}"
                    )

        return check


def setup_of_body(body: Callable[..., Any], fixtures: CopiedFixtures) -> Setup:
    """Return a `setup(arm)` that copies the fixtures and trains on the loss that `body` returns."""

    def setup(arm: Arm) -> Step:
        values = fixtures.copied()
        found = [leaf for name, value in values.items() for leaf in held_by(name, value)]
        for model in _models(found):
            arm.prepare(model)
        instance = [values.pop(SELF)] if SELF in values else []
        optimizers = list(
            {id(leaf): leaf for leaf in found if isinstance(leaf, Optimizer)}.values()
        )
        schedulers = {id(leaf): leaf for leaf in found if isinstance(leaf, LRScheduler)}
        check: Callable[[], None] | None = fixtures.untouched()

        def step() -> Any:
            nonlocal check
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            with arm.autocast():
                returned = body(*instance, **values)
            total = _differentiable(returned)
            try:
                scaled = arm.scaler.scale(total) if arm.scaler.is_enabled() else total
                torch.autograd.backward(scaled)
            except RuntimeError as error:
                if "backward through the graph a second time" not in str(error):
                    raise
                raise AmpError(
                    "the body called backward itself: end it with `return loss` and leave "
                    f"backward and the optimizer to pytest-amp, or {WRITE_SETUP}"
                ) from error
            if check is not None:
                check()
                check = None
            log = _log(arm.scaler)
            mark = log.attempts
            for optimizer in optimizers:
                arm.scaler.step(optimizer)
            arm.scaler.update()
            if schedulers and not any(log.skipped(mark)):
                for scheduler in schedulers.values():
                    _advance(scheduler, total)
            return returned

        return step

    return setup


def _models(found: Iterable[Any]) -> list[torch.nn.Module]:
    """Return the modules with parameters that are part of no other module."""
    modules = [leaf for leaf in found if isinstance(leaf, torch.nn.Module)]
    parts = {id(part) for each in modules for part in each.modules() if part is not each}
    models = {id(each): each for each in modules if id(each) not in parts}
    return [each for each in models.values() if any(True for _ in each.parameters())]


class _Uncopyable(Exception):
    """An attribute can't be copied; the message names it and says why."""


def _deepcopy(value: Any) -> Any:
    """Return a deep copy whose optimizers keep their own attributes.

    torch's optimizers leave out what a subclass or the user has added to them.
    """
    memo: dict[int, Any] = {}
    copied = copy.deepcopy(value, memo)
    originals: list[Any] = memo.get(id(memo), [])  # where deepcopy keeps what it has copied
    for each in originals:  # grows while attributes are copied
        if isinstance(each, Optimizer) and not _copies_itself(each):
            _complete(each, memo)
    return copied


def _copies_itself(optimizer: Optimizer) -> bool:
    """Return whether the optimizer's class defines what a copy keeps."""
    says = ("__getstate__", "__deepcopy__", "__reduce__", "__reduce_ex__")
    kind = type(optimizer)
    return any(getattr(kind, name, None) is not getattr(Optimizer, name, None) for name in says)


def _complete(optimizer: Optimizer, memo: dict[int, Any]) -> None:
    """Give an optimizer's copy the attributes that it lacks, referring to the other copies.

    A scheduler's wrapper around `step` is left out, because it would step the original.
    """
    known = vars(memo[id(optimizer)])
    for name, value in vars(optimizer).items():
        if name not in known and name != "step":
            try:
                known[name] = copy.deepcopy(value, memo)
            except Exception as error:
                raise _Uncopyable(
                    f"its {type(optimizer).__name__}'s attribute {name!r}, "
                    f"{type(error).__name__}: {error}"
                ) from error


def _log(scaler: torch.amp.GradScaler) -> ScalerLog:
    assert isinstance(scaler, AmpScaler)
    return scaler._log


def _advance(scheduler: LRScheduler, loss: torch.Tensor) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(loss.detach())
    else:
        scheduler.step()


def _differentiable(returned: Any) -> torch.Tensor:
    """Return the loss to call backward on; the sum if there are several."""
    if isinstance(returned, Mapping) and hasattr(returned, "loss"):
        raise AmpError(
            f"the test returned a {type(returned).__name__}, not a loss: return its .loss"
        )
    losses = list(returned.values()) if isinstance(returned, Mapping) else [returned]
    for loss in losses:
        if loss is None:
            raise AmpError(
                "the test returned no loss: end its body with `return loss`, the scalar tensor "
                f"to train on, or {WRITE_SETUP}"
            )
        if not isinstance(loss, torch.Tensor):
            hint = " (return its .loss)" if hasattr(loss, "loss") else ""
            raise AmpError(
                f"the test returned a {type(loss).__name__}{hint}, not a loss: return the scalar "
                f"tensor to train on, or {WRITE_SETUP}"
            )
        if loss.numel() != 1:
            raise AmpError(
                f"the loss is not a scalar but a tensor of shape {tuple(loss.shape)}: reduce it, "
                "for example with .mean()"
            )
        if not loss.requires_grad:
            raise AmpError(
                "the loss requires no grad, so there is nothing to train: it was detached, or "
                "computed under torch.no_grad(), or no parameter took part in it"
            )
    if not losses:
        raise AmpError("the test returned an empty dict: there is no loss to train on")
    total: torch.Tensor = sum(losses[1:], start=losses[0])
    return total


def leaves(value: Any) -> Iterator[Any]:
    """Yield `value` and all that it holds, inside containers, dataclasses and namespaces."""
    yield value
    if isinstance(value, Mapping):
        held: Any = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        held = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = [getattr(value, f.name, None) for f in dataclasses.fields(value)]
    elif isinstance(value, SimpleNamespace):
        held = vars(value).values()
    else:
        return
    for each in held:
        yield from leaves(each)


def held_by(name: str, value: Any) -> Iterator[Any]:
    """Yield the `leaves` of a fixture's value, or of the attributes of a test class's instance."""
    return leaves(vars(value)) if name == SELF else leaves(value)


def _parameters(leaf: Any) -> list[torch.Tensor]:
    if isinstance(leaf, torch.nn.Module):
        return list(leaf.parameters())
    if isinstance(leaf, Optimizer):
        return [param for group in leaf.param_groups for param in group["params"]]
    if isinstance(leaf, torch.Tensor) and leaf.is_leaf and leaf.requires_grad:
        return [leaf]
    return []


def _refuse(name: str, value: Any) -> None:
    for leaf in held_by(name, value):
        problem = None
        if isinstance(leaf, torch.utils.data.DataLoader):
            problem = "is a DataLoader: the body runs once per step, not once per epoch"
        elif isinstance(leaf, Iterator):
            problem = f"is an iterator ({type(leaf).__name__}), which can't be copied for two arms"
        elif isinstance(leaf, torch.amp.GradScaler):
            problem = "is a GradScaler: when the body is the step, pytest-amp scales for it"
        elif isinstance(leaf, LBFGS):
            problem = "is an LBFGS optimizer, which needs a closure"
        if problem:
            raise AmpError(f"the fixture {name!r} {problem}; {WRITE_SETUP}")


def _rewrap(optimizer: Any) -> None:
    """Mark an optimizer's `step` as its scheduler had marked it.

    A copy loses the mark, and the scheduler's copy would then warn that `step` was overridden.
    """
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return
    original = optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True
        return original(*args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step
