"""Reruns of the amp arm with one thing changed: whether a suspect is the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.amp.autocast_mode import autocast
from torch.utils import _pytree as pytree

from pytest_amp.errors import none_of_ours
from pytest_amp.records import ParityRun
from pytest_amp.run import parity
from pytest_amp.run.arm import Workbench
from pytest_amp.run.modules import ModuleStack
from pytest_amp.run.patches import patched

__tracebackhide__ = none_of_ours


def without_cast_cache(bench: Workbench, steps: int) -> ParityRun:
    """The amp arm with autocast's cache of cast weights off, however its regions were made."""

    def enter(original: Any, region: Any, *args: Any) -> Any:
        region._cache_enabled = False
        return original(region, *args)

    with patched(autocast, "__enter__", enter):
        return parity.run(bench, "amp", steps)[0]


def in_float32(bench: Workbench, steps: int, path: str) -> ParityRun:
    """The amp arm with one module kept in float32, and all below it; compiled code runs eagerly."""
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_kept(bench.device.type, path))
        return parity.run(bench, "amp", steps)[0]


@contextmanager
def _kept(device_type: str, path: str) -> Iterator[None]:
    """Where the module at `path` is called, autocast is off and its inputs are float32."""
    with ModuleStack() as modules:
        original: Any = torch.nn.Module.__call__

        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if modules.path_of(module) != path:
                return original(module, *args, **kwargs)
            args, kwargs = pytree.tree_map(_widened, (args, kwargs))
            with torch.autocast(device_type, enabled=False):
                return original(module, *args, **kwargs)

        with patched(torch.nn.Module, "__call__", lambda _, *args, **kwargs: call(*args, **kwargs)):
            yield


def _widened(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float16, torch.bfloat16):
        return leaf.float()
    return leaf
