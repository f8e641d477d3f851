"""Prepare a model for a recipe: cast it, lay it out, convert its linear layers, compile it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from pytest_amp import extras
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.machine.abilities import abilities
from pytest_amp.lab.machine.global_state import quietly
from pytest_amp.recipes import Recipe
from pytest_amp.settings.precision import EMULATED

__tracebackhide__ = unless_our_bug

M = TypeVar("M", bound=torch.nn.Module)


def prepared(model: M, recipe: Recipe, device: torch.device) -> M:
    """Change a model to what a recipe has, and return it.

    Raises:
        AmpError: this is no model, or the recipe needs what is not installed.
    """
    if not isinstance(model, torch.nn.Module):
        raise AmpError(f"arm.prepare(model) takes a torch.nn.Module, not a {type(model).__name__}")
    if recipe.parameter_dtype != "float32":
        _keep_in(model, getattr(torch, recipe.parameter_dtype))
    if recipe.memory_format == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.float8 is not None:
        _convert_to_float8(model, recipe.float8, device)
    if recipe.compile is not None:
        _compile(model, recipe.compile)
    return model


def _compile(model: torch.nn.Module, mode: str) -> None:
    """Compile a model in place, as `torch.nn.Module.compile` does.

    That leaves torch's own modules uncompiled, since Dynamo passes over a frame of torch's in which
    it would have to begin. So it begins in ours.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    compiled: Any = torch.compile(call, mode=mode)
    model._compiled_call_impl = compiled


def _keep_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast a model, and from now on what it is called with."""

    def cast(_: Any, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, to, (args, kwargs))

    def to(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    model.to(dtype)
    model.register_forward_pre_hook(cast, with_kwargs=True)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the user's eyes what torchao says of kernels that it can't load."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quietly(), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _convert_to_float8(model: torch.nn.Module, scales: str, device: torch.device) -> None:
    """Replace the linear layers by torchao's of float8.

    Left out are those whose features are no multiples of 16, which no kernel takes. Where the
    device has no float8, it is emulated.
    """
    able = abilities(device).float8[scales]
    if missing := extras.missing("fp8", "float8 needs", "torchao"):
        named = "fp8" if scales == "tensorwise" else "fp8-rowwise"
        raise AmpError(f"{missing}; or choose another recipe than {named}")
    with _silent():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    config = Float8LinearConfig.from_recipe_name(scales)
    if able == EMULATED:
        object.__setattr__(config, "emulate", True)

    def fits(module: torch.nn.Module, _: str) -> bool:
        assert isinstance(module, torch.nn.Linear)
        return module.in_features % 16 == 0 and module.out_features % 16 == 0

    convert_to_float8_training(model, config=config, module_filter_fn=fits)
