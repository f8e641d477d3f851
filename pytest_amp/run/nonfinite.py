"""Where a loss stopped being finite: the step is run again under watch, from a fresh build."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.modules import module as nn_module
from torch.utils import _pytree as pytree

from pytest_amp.errors import none_of_ours
from pytest_amp.records import Origin
from pytest_amp.run.arm import Workbench
from pytest_amp.run.ops import Watching

__tracebackhide__ = none_of_ours


class _FirstNonfinite(Watching):
    """Stops looking at the first operator that made inf or NaN from finite inputs.

    Backward passes are left out: gradients that overflow are the GradScaler's daily bread.
    """

    def __init__(self, modules: _ModuleStack) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = modules
        self.op: str | None = None
        self.module: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        forward = torch._C._current_graph_task_id() == -1
        if self.op is None and forward and not _finite(out) and _finite((args, kwargs)):
            self.op = str(func._overloadpacket._qualified_op_name)
            self.module = self._modules.path()
        return out


class _ModuleStack:
    """The modules being called right now, named by their path from the outermost one."""

    def __init__(self) -> None:
        self._stack: list[torch.nn.Module] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> _ModuleStack:
        self._hooks = [
            nn_module.register_module_forward_pre_hook(lambda m, _: self._stack.append(m)),
            nn_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _leave(self, *_: object) -> None:
        self._stack.pop()

    def path(self) -> str | None:
        """``layers.3.mlp``, or the class name of an outermost module; None outside of modules."""
        if not self._stack:
            return None
        root, current = self._stack[0], self._stack[-1]
        names = {id(module): name for name, module in root.named_modules()}
        return names.get(id(current)) or type(current).__name__


def _finite(tree: Any) -> bool:
    return all(
        bool(torch.isfinite(leaf).all())
        for leaf in pytree.tree_leaves(tree)
        if isinstance(leaf, torch.Tensor)
        and leaf.is_floating_point()
        and leaf.layout is torch.strided
        and not leaf.is_nested
    )


def locate(bench: Workbench, step: int) -> Origin | None:
    """Run the amp arm again up to its 0-based `step`, watching that one; None if it is finite.

    Compiled code is run eagerly on the watched step.
    """
    with bench.built("amp") as resident, resident.active():
        for index in range(step):
            bench.progress.at("locating", "amp", index + 1, step + 1)
            resident.step()
        bench.progress.at("locating", "amp", step + 1, step + 1)
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        with eager, _ModuleStack() as modules, _FirstNonfinite(modules) as watch:
            resident.step()
    return None if watch.op is None else Origin(step, watch.op, watch.module)
