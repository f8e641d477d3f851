"""Everything global that a training step may touch: read, swapped at each change of arm, put back.

One row a global. Writing happens only where a value differs, since some writes have effects of
their own (setting the default device turns on a function mode).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optim_module

from pytest_amp.run.device import Device

_UNREADABLE = object()


@dataclass(frozen=True)
class Global:
    """A process-wide value. `read` may raise where a mixture of old and new APIs was used."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _attribute(name: str, owner: Any, attribute: str) -> Iterator[Global]:
    if hasattr(type(owner), attribute) or hasattr(owner, attribute):
        yield Global(
            name, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value)
        )


def _precision() -> Iterator[Global]:
    """Old switches first: a write to one changes the new ones too, and not the other way round."""
    backends: Any = torch.backends
    yield Global(
        "float32_matmul_precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    )
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    yield from _attribute("cuda.matmul.allow_tf32", matmul, "allow_tf32")
    yield from _attribute("cudnn.allow_tf32", cudnn, "allow_tf32")
    for owner, name in (
        (backends, "fp32_precision"),
        (matmul, "cuda.matmul.fp32_precision"),
        (getattr(cudnn, "conv", None), "cudnn.conv.fp32_precision"),
        (getattr(cudnn, "rnn", None), "cudnn.rnn.fp32_precision"),
        (getattr(backends.mkldnn, "matmul", None), "mkldnn.matmul.fp32_precision"),
        (getattr(backends.mkldnn, "conv", None), "mkldnn.conv.fp32_precision"),
        (getattr(backends.mkldnn, "rnn", None), "mkldnn.rnn.fp32_precision"),
    ):
        try:
            if owner is not None and hasattr(owner, "fp32_precision"):
                yield from _attribute(name, owner, "fp32_precision")
        except (RuntimeError, AssertionError):
            continue


def _autocast() -> Iterator[Global]:
    for kind in ("cpu", "cuda", "xpu", "mps"):
        try:
            torch.get_autocast_dtype(kind)
        except RuntimeError:
            continue
        yield _autocast_on(kind)
    yield Global(
        "autocast.cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    )
    yield Global("autocast.nesting", _nesting, _set_nesting)


def _autocast_on(kind: str) -> Global:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(kind, value[0])
        torch.set_autocast_dtype(kind, value[1])

    return Global(
        f"autocast.{kind}",
        lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        write,
    )


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _set_nesting(depth: int) -> None:
    """Unwind what a leaked ``autocast.__enter__`` left, and its cached casts with it."""
    while _nesting() > depth:
        torch.autocast_decrement_nesting()
    while _nesting() < depth:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


def _default_device() -> torch.device | None:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_environment(value: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(value):
        del os.environ[name]
    os.environ.update(value)


def _signals() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _set_signals(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


def _hooks() -> Iterator[Global]:
    for owner in (nn_module, optim_module):
        for name, registry in vars(owner).items():
            if name.startswith("_global_") and isinstance(registry, dict):
                yield _registry(f"{owner.__name__}.{name}", registry)


def _registry(name: str, registry: dict[Any, Any]) -> Global:
    def write(value: Mapping[Any, Any]) -> None:
        registry.clear()
        registry.update(value)

    return Global(name, lambda: dict(registry), write)


def _table() -> tuple[Global, ...]:
    cudnn: Any = torch.backends.cudnn
    return (
        *_precision(),
        *_attribute("cudnn.benchmark", cudnn, "benchmark"),
        *_attribute("cudnn.deterministic", cudnn, "deterministic"),
        *_attribute("cudnn.enabled", cudnn, "enabled"),
        Global("default_dtype", torch.get_default_dtype, torch.set_default_dtype),
        Global("default_device", _default_device, torch.set_default_device),
        Global(
            "deterministic_algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            _set_deterministic,
        ),
        Global("grad_enabled", torch.is_grad_enabled, torch._C._set_grad_enabled),
        Global(
            "anomaly",
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: torch.set_anomaly_enabled(*value),
        ),
        Global("num_threads", torch.get_num_threads, torch.set_num_threads),
        *_autocast(),
        *_hooks(),
        Global("environ", lambda: dict(os.environ), _set_environment),
        Global("signals", _signals, _set_signals),
    )


Snapshot = Mapping[str, Any]


class GlobalState:
    """The globals and the random number generators, for one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._table = _table()

    def seed(self, seed: int) -> None:
        """Seed python, numpy and torch on all devices."""
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)

    def capture(self) -> Snapshot:
        """All values as they are now."""
        with _quietly():
            state = {each.name: _read(each) for each in self._table}
        state["rng.python"] = random.getstate()
        state["rng.numpy"] = numpy.random.get_state()
        state["rng.torch"] = torch.get_rng_state()
        state["rng.device"] = self._device.rng_state()
        return state

    def apply(self, state: Snapshot) -> None:
        """Put all values back to what `capture` saw."""
        with _quietly():
            for each in self._table:
                wanted = state[each.name]
                if wanted is not _UNREADABLE and _read(each) != wanted:
                    each.write(wanted)
        random.setstate(state["rng.python"])
        numpy.random.set_state(state["rng.numpy"])
        torch.set_rng_state(state["rng.torch"])
        if state["rng.device"] is not None:
            self._device.set_rng_state(state["rng.device"])

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Whatever happens inside, afterwards everything is as it was."""
        before = self.capture()
        try:
            yield
        finally:
            self.apply(before)

    def flags(self) -> dict[str, Any]:
        """The switches that shift what a baseline means, as plain values for the report."""
        with _quietly():
            state = {each.name: _read(each) for each in self._table}
        shown = {
            name: value
            for name, value in state.items()
            if ("precision" in name or "tf32" in name or name.startswith("cudnn."))
            and value is not _UNREADABLE
        }
        shown["deterministic_algorithms"] = state["deterministic_algorithms"][0]
        shown["num_threads"] = state["num_threads"]
        return shown


def _read(each: Global) -> Any:
    try:
        return each.read()
    except (RuntimeError, AssertionError):
        return _UNREADABLE


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
