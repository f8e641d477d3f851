"""Remember which forward operator made each autograd node, and on which line of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.source import location

if TYPE_CHECKING:
    from typing_extensions import Self

__tracebackhide__ = unless_our_bug


class Place(NamedTuple):
    """A call in a forward pass.

    Attributes:
        op: the operator's name, or the class of a custom autograd function.
        module: the path of the module that called it; None outside of modules.
        location: the user's line that called it.
    """

    op: str
    module: str | None
    location: str | None


class ForwardLines:
    """Finds the forward call that made a backward pass's node, by the node's sequence number."""

    def __init__(self, modules: ModuleStack) -> None:
        self._modules = modules
        self._places: dict[int, Place] = {}

    def note(self, func: Any) -> None:
        """Take note of an operator before it runs; the first to see a new node has made it.

        A backward pass makes nodes as well: where it repeats a forward pass, and where it is itself
        to be differentiated. These last belong to the line whose gradient is being computed.
        """
        node, call = current_node(), self._modules.top
        if node is not None and not torch.is_grad_enabled():
            return
        newest: Any = torch._C._autograd._get_sequence_nr() - 1
        if newest in self._places:
            return
        if node is None or (call is not None and call.again):
            self._places[newest] = Place(operator_name(func), self._modules.path(), location())
        elif (place := self.of(node)) is not None:
            self._places[newest] = place

    def of(self, node: Any) -> Place | None:
        """Return the forward call that made the node; None if it was not seen."""
        place = self._places.get(node._sequence_nr())
        if place is not None and is_custom(node):
            return place._replace(op=node.name().removesuffix("Backward"))
        return place


class BothPasses(DispatchMode):
    """A step that is watched going forward and backward, with the place of each forward call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = ModuleStack()
        self._lines = ForwardLines(self._modules)

    @contextmanager
    def watching(self) -> Iterator[Self]:
        """Watch what runs inside; compiled code runs eagerly meanwhile."""
        with (
            torch.compiler.set_stance("force_eager"),
            subscribed(backward=self._around_backward),
            self._modules,
            self,
        ):
            yield self

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def current_node() -> Any:
    """Return the node that the running backward pass is at; None in a forward pass."""
    return torch._C._current_autograd_node()


def backward_of(node: Any) -> Any:
    """Return the Python function that computes a custom node's gradients."""
    cls = getattr(node, "_forward_cls", None)
    vjp: Any = getattr(cls, "vjp", None)
    return vjp if vjp is not torch.autograd.Function.vjp else getattr(cls, "backward", None)


def is_custom(node: Any) -> bool:
    """Return whether the node's backward pass is written in Python, by `autograd.Function`."""
    return isinstance(node, BackwardCFunction)
