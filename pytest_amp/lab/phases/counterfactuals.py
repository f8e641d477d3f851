"""Rerun the amp arm with one thing changed, to see whether a suspect is the cause."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Arm, Setup, Step
from pytest_amp.lab.phases import parity
from pytest_amp.lab.scaling.step_watch import Replay
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.widened_lines import WidenedLines, widened
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import ParityRun

__tracebackhide__ = unless_our_bug

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def without_cast_cache(bench: Workbench, steps: int) -> tuple[ParityRun, Replay | None]:
    """Run the amp arm without autocast's cache of cast weights, however its regions are made.

    Returns:
        The run, and the skips that another arm would have to repeat.
    """

    def enter(original: Any, region: Any, *args: Any) -> Any:
        region._cache_enabled = False
        return original(region, *args)

    with subscribed(autocast_enter=enter):
        return parity.run(bench, "amp", steps)


def with_threads(count: int) -> Callable[[Setup], Setup]:
    """Return a change to a setup, with which an arm computes in so many threads."""

    def changed(setup: Setup) -> Setup:
        def set_up(arm: Arm) -> Step:
            torch.set_num_threads(count)  # it is put back with the arm's other global state
            return setup(arm)

        return set_up

    return changed


def in_float32(
    bench: Workbench, steps: int, modules: Collection[str] = (), lines: Collection[str] = ()
) -> tuple[ParityRun, Replay | None]:
    """Run the amp arm with some modules and some source lines in float32.

    Compiled code runs eagerly, since neither could be reached in it.

    Args:
        bench: builds the arm.
        steps: how many steps to run.
        modules: the paths of the modules; all modules below them are in float32 too.
        lines: the lines, as ``file:line``.

    Returns:
        The run, and the skips that another arm would have to repeat.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if modules:
            stack.enter_context(_kept_in_float32(bench.device.type, modules))
        if lines:
            stack.enter_context(WidenedLines(bench.device.type, lines))
        return parity.run(bench, "amp", steps)


def channels_last(setup: Setup) -> Setup:
    """Change a setup to keep the weights of 2d and 3d convolutions in channels_last.

    Modules are known only once they are called, so the first step converts the weights.
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
    """Change a setup to let cuDNN try its kernels (``torch.backends.cudnn.benchmark``)."""

    def changed(arm: Arm) -> Step:
        step = setup(arm)
        torch.backends.cudnn.benchmark = True
        return step

    return changed


@contextmanager
def _kept_in_float32(device_type: str, paths: Collection[str]) -> Iterator[None]:
    """Run the modules at `paths` without autocast and on float32 inputs."""
    with ModuleStack() as modules:

        def call(original: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if modules.path_of(module) not in paths:
                return original(module, *args, **kwargs)
            args, kwargs = pytree.tree_map(widened, (args, kwargs))
            with torch.autocast(device_type, enabled=False):
                return original(module, *args, **kwargs)

        # Subscribed after the stack, so that paths are looked up before the stack enters a module.
        with subscribed(module_call=call):
            yield
