"""Look at the modules that an arm made: their settings, and whether their state is finite."""

from __future__ import annotations

import gc
from collections import defaultdict
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
        return tuple(self.nonfinite_tensors())

    def nonfinite_tensors(self) -> dict[str, torch.Tensor]:
        """Return these parameters and buffers by name; of two with one name, the last."""
        return {
            name: tensor
            for root in self._outermost()
            for name, tensor in (*root.named_parameters(), *root.named_buffers())
            if not all(map(is_finite, floating(tensor)))
        }

    def described(self) -> dict[str, str]:
        """Return what each module says of itself, by its path: ``Dropout(p=0.1) in training``.

        A path begins with the class of the outermost module. It is left out if several modules of
        that path say different things, as a teacher and its student may.
        """
        found: defaultdict[str, set[str]] = defaultdict(set)
        for root in self._outermost():
            for path, module in root.named_modules(prefix=type(root).__name__):
                mode = "training" if module.training else "evaluation"
                found[path].add(f"{type(module).__name__}({module.extra_repr()}) in {mode}")
        return {path: text for path, (text, *others) in found.items() if not others}

    def _outermost(self) -> Iterator[torch.nn.Module]:
        made = [module for module in _modules() if module not in self._older]
        within = {id(child) for module in made for child in module._modules.values()}
        for module in made:
            if id(module) not in within:
                yield getattr(module, "_orig_mod", module)


def _modules() -> list[torch.nn.Module]:
    return [each for each in gc.get_objects() if issubclass(type(each), torch.nn.Module)]
