"""Find what an arm leaves behind in its modules that is not finite any more."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from weakref import WeakSet

import torch

from pytest_amp.lab.watch.tensors import floating, is_finite


class MadeModules:
    """The modules that are made from here on.

    They are found by the garbage collector. It knows those of the experiment alone, because older
    objects are set aside, so the search is short.
    """

    def __init__(self) -> None:
        self._older = WeakSet(_modules())

    def nonfinite_state(self) -> tuple[str, ...]:
        """Return the names of their parameters and buffers that are not finite.

        A name is the path from the outermost module that holds it.
        """
        return tuple(
            name
            for root in self._outermost()
            for name, tensor in (*root.named_parameters(), *root.named_buffers())
            if not all(map(is_finite, floating(tensor)))
        )

    def _outermost(self) -> Iterator[torch.nn.Module]:
        made = [module for module in _modules() if module not in self._older]
        within = {id(child) for module in made for child in module._modules.values()}
        for module in made:
            if id(module) not in within:
                yield getattr(module, "_orig_mod", module)


def _modules() -> list[torch.nn.Module]:
    return [each for each in gc.get_objects() if issubclass(type(each), torch.nn.Module)]
