"""Collect what a step returns as its loss, and keep it on the device until the run is over."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.watch.tape import Tape
from pytest_amp.observations import Losses

__tracebackhide__ = unless_our_bug

SINGLE = "loss"


class LossCurves:
    """The losses of one run, by key. A single loss has the key ``"loss"``."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}
        self._tape = Tape()

    def append(self, returned: Any) -> None:
        """Add one step's loss or losses.

        Raises:
            AmpError: what was returned is not a loss.
        """
        output = hasattr(returned, "loss")  # a model's output, which may be a mapping too
        losses = returned if isinstance(returned, Mapping) and not output else {SINGLE: returned}
        if not losses:
            raise AmpError("the step returned an empty dict: there is no loss to compare")
        if self._values and set(map(str, losses)) != set(self._values):
            raise AmpError(
                f"the step returned the losses {sorted(map(str, losses))}, and before that "
                f"{sorted(self._values)}: every step must return the same keys"
            )
        if len(set(map(str, losses))) < len(losses):
            raise AmpError(f"two of the step's losses have the same name: {list(losses)}")
        for key, value in losses.items():
            self._values.setdefault(str(key), []).append(_recorded(value, str(key), self._tape))

    def read(self) -> Losses:
        """Return the curves as floats; waits for the device."""
        return {key: tuple(float(v) for v in values) for key, values in self._values.items()}


def _recorded(value: Any, key: str, tape: Tape) -> Any:
    name = "the loss" if key == SINGLE else f"the loss {key!r}"
    if value is None:
        raise AmpError(f"no loss: {name} is None. The step must return its loss")
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex():
            raise AmpError(
                f"{name} is not a scalar but a tensor of shape {tuple(value.shape)} and dtype "
                f"{value.dtype}: reduce it, for example with .mean()"
            )
        return tape.keep(value)  # a compiled step may reuse its output's memory
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise AmpError(f"{name} is a number that no float holds") from None
    hint = " (return its .loss)" if hasattr(value, "loss") else ""
    raise AmpError(
        f"{name} is a {type(value).__name__}{hint}: the step must return a float, a scalar "
        "tensor, or a dict of them"
    )
