"""Find what an arm made that has state, look at the state, compare it, and put it back."""

from __future__ import annotations

import copy
import gc
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.scaling.scaler import set_scale
from pytest_amp.lab.watch.source import is_the_users
from pytest_amp.lab.watch.tensors import floating

__tracebackhide__ = unless_our_bug

State = Any  # a tree of tensors and plain values, which belongs to nobody else


class LooseParameters:
    """Parameters that an optimizer trains and that no module holds."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors


KINDS = {
    GradScaler: "scaler",
    LRScheduler: "scheduler",
    Optimizer: "optimizer",
    torch.nn.Module: "model",
    LooseParameters: "model",
}


def objects_with_state() -> list[Any]:
    """Return all that the garbage collector knows of: of torch's kinds, and of the user's own."""
    every = gc.get_objects()
    kinds = {cls for cls in set(map(type, every)) if _has_state(cls)}
    return [each for each in every if type(each) in kinds]


def made_since(before: Sequence[Any]) -> list[Any]:
    """Return what was made since `before`, in the order in which it was made.

    A module or a schedule inside another one is part of that, and so is an optimizer that is
    another one in a wrapper.
    """
    older = set(map(id, before))
    made = [each for each in objects_with_state() if id(each) not in older]
    within = {id(part) for each in made for part in _parts(each)}
    outer = list({_identity(each): each for each in made if id(each) not in within}.values())
    held = {id(tensor) for each in outer for _, tensor in _tensors(each)}
    loose = {
        id(param): param
        for each in outer
        if isinstance(each, Optimizer)
        for group in each.param_groups
        for param in group["params"]
        if id(param) not in held
    }
    return [*outer, LooseParameters(list(loose.values()))] if loose else outer


def kind_of(thing: Any) -> str:
    """Return "scaler", "scheduler", "optimizer", "model" or "other"."""
    return next((kind for cls, kind in KINDS.items() if isinstance(thing, cls)), "other")


@torch.no_grad()
def look(thing: Any) -> State:
    """Return a copy of its state."""
    if isinstance(thing, GradScaler):
        on = thing.is_enabled()
        return {"scale": thing.get_scale(), "growth": thing._get_growth_tracker()} if on else {}
    if isinstance(thing, Optimizer):
        groups = [{**group, "params": None} for group in thing.param_groups]
        return _copied({"states": [dict(each) for each in _states(thing)], "groups": groups})
    if isinstance(thing, torch.nn.Module | LooseParameters):
        return _copied(dict(_tensors(thing)))
    return _copied(thing.state_dict())


@torch.no_grad()
def put_back(thing: Any, state: State) -> None:
    """Give it a state that `look` returned."""
    state = _copied(state)
    if isinstance(thing, GradScaler):
        if state:
            set_scale(thing, state["scale"])
            thing._init_growth_tracker = state["growth"]
            if thing._growth_tracker is not None:
                thing._growth_tracker.fill_(state["growth"])
    elif isinstance(thing, Optimizer):
        parameters = [param for group in thing.param_groups for param in group["params"]]
        thing.state.clear()
        thing.state.update(
            {param: own for param, own in zip(parameters, state["states"], strict=True) if own}
        )
        for group, saved in zip(thing.param_groups, state["groups"], strict=True):
            group.update({**saved, "params": group["params"]})
    elif isinstance(thing, torch.nn.Module | LooseParameters):
        for name, tensor in _tensors(thing):
            if name in state and state[name].shape == tensor.shape:
                tensor.copy_(state[name])
            elif name in state:  # a cache that has grown
                tensor.data = state[name]
    else:
        thing.load_state_dict(state)


def distance(one: State, other: State) -> float:
    """Return by how much two states differ, in the value that differs most.

    That is the norm of the difference / the larger norm; infinity for what can't be subtracted. How
    many steps a scaler has taken since its last growth is left out: it shows once the scale grows.
    """
    ones, others = (dict(_leaves(_comparable(each))) for each in (one, other))
    if ones.keys() != others.keys():
        return math.inf
    return max((_between(leaf, others[path]) for path, leaf in ones.items()), default=0.0)


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield all leaves with their paths; what order a dict has is no matter."""
    if isinstance(tree, Mapping):
        pairs: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        pairs = enumerate(tree)
    else:
        yield path, tree
        return
    for key, each in pairs:
        yield from _leaves(each, (*path, key))


def _between(one: Any, other: Any) -> float:
    parts = _numbers(one), _numbers(other)
    if not all(parts):
        is_plain = isinstance(one, (bool, str, type(None)))
        return math.inf if any(parts) or (is_plain and one != other) else 0.0
    if [part.shape for part in parts[0]] != [part.shape for part in parts[1]]:
        return math.inf
    pairs = list(zip(*parts, strict=True))
    between, *sizes = (
        math.hypot(*(float(torch.linalg.vector_norm(each)) for each in parts))
        for parts in ([a - b for a, b in pairs], *parts)
    )
    return between / max(sizes) if between else 0.0


def _has_state(cls: type) -> bool:
    if issubclass(cls, tuple(KINDS)):
        return True
    methods = (getattr(cls, name, None) for name in ("state_dict", "load_state_dict"))
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return all(map(callable, methods)) and file is not None and is_the_users(file)


def _identity(thing: Any) -> int:
    return id(thing.param_groups if isinstance(thing, Optimizer) else thing)


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, torch.nn.Module):
        yield from thing._modules.values()
    elif isinstance(thing, LRScheduler):
        yield from getattr(thing, "_schedulers", ())


def _tensors(thing: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(thing, torch.nn.Module):
        yield from thing.named_parameters()
        yield from thing.named_buffers()
    elif isinstance(thing, LooseParameters):
        yield from ((str(index), tensor) for index, tensor in enumerate(thing.tensors))


def _states(optimizer: Optimizer) -> Iterator[Any]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield optimizer.state.get(param, {})


def _copied(tree: State) -> State:
    def copied(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else copy.deepcopy(leaf)

    return pytree.tree_map(copied, tree)


def _comparable(state: State) -> State:
    is_scaler = isinstance(state, dict) and set(state) == {"scale", "growth"}
    return {"scale": state["scale"]} if is_scaler else state


def _numbers(leaf: Any) -> list[torch.Tensor]:
    if isinstance(leaf, torch.Tensor):
        return [part.double() for part in floating(leaf)] or [leaf.double().cpu()]
    if isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
        return [torch.tensor(leaf, dtype=torch.float64)]
    return []
