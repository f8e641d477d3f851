"""Reruns of the amp arm with one thing changed: whether a suspect is the cause."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Arm, Setup, Step, Workbench
from pytest_amp.lab.phases import parity
from pytest_amp.lab.scaling.step_watch import Replay
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.observations import ParityRun

__tracebackhide__ = unless_our_bug

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def without_cast_cache(bench: Workbench, steps: int) -> tuple[ParityRun, Replay | None]:
    """The amp arm with autocast's cache of cast weights off, however its regions were made.

    Its skips, too.
    """

    def enter(original: Any, region: Any, *args: Any) -> Any:
        region._cache_enabled = False
        return original(region, *args)

    with subscribed(autocast_enter=enter):
        return parity.run(bench, "amp", steps)


def in_float32(
    bench: Workbench, steps: int, paths: Collection[str]
) -> tuple[ParityRun, Replay | None]:
    """The amp arm with these modules kept in float32, and all below them; its skips, too.

    Compiled code runs eagerly, or nobody could reach into it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_kept(bench.device.type, paths))
        return parity.run(bench, "amp", steps)


def channels_last(setup: Setup) -> Setup:
    """The same arm, the weights of its images' and volumes' convolutions in channels_last.

    Modules are known once they are called, so it is the first step that turns them.
    """

    def turn(module: torch.nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            layout = _CHANNELS_LAST.get(parameter.dim())
            if layout is not None and parameter.layout is torch.strided:
                parameter.data = parameter.data.contiguous(memory_format=layout)

    def changed(arm: Arm) -> Step:
        step, steps = setup(arm), 0

        def turned_at_first() -> Any:
            nonlocal steps
            steps += 1
            if steps > 1:
                return step()
            with torch.compiler.set_stance("force_eager"), ModuleStack(entered=turn):
                return step()

        return turned_at_first

    return changed


def autotuned(setup: Setup) -> Setup:
    """The same arm, cuDNN trying its kernels (``torch.backends.cudnn.benchmark``)."""

    def changed(arm: Arm) -> Step:
        step = setup(arm)
        torch.backends.cudnn.benchmark = True
        return step

    return changed


@contextmanager
def _kept(device_type: str, paths: Collection[str]) -> Iterator[None]:
    """Where a module at one of the paths is called, autocast is off and its inputs are float32."""
    with ModuleStack() as modules:

        def call(original: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if modules.path_of(module) not in paths:
                return original(module, *args, **kwargs)
            args, kwargs = pytree.tree_map(_widened, (args, kwargs))
            with torch.autocast(device_type, enabled=False):
                return original(module, *args, **kwargs)

        # Around the stack's own call: a module's path is asked for before it is entered.
        with subscribed(module_call=call):
            yield


def _widened(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float16, torch.bfloat16):
        return leaf.float()
    return leaf
