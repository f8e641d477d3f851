"""What a real training tells of its mixed precision: precision, loss scale, skips, underflow.

The meter watches every step of the optimizer on the device, and looks closely at a few of them: it
must not slow the training down, change it, or wait for the device in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import Module

LARGEST = 2**16
"""How many elements of one gradient are looked at; of a larger one, every n-th row."""


class Precision(NamedTuple):
    """What matrix products of a training compute in.

    Attributes:
        autocast: whether autocast is on around them.
        dtype: the dtype of what they return.
    """

    autocast: bool
    dtype: torch.dtype


class Meter:
    """What is known of one training so far.

    Args:
        model: the module that is trained.
        autocast: the dtype of the autocast that its trainer was asked for; None for none. It counts
            until a step was looked at, and where the model is compiled, since a hook would be too.
        skipped: how many steps were skipped earlier, in the training that this one resumes.
    """

    def __init__(self, model: Module, autocast: torch.dtype | None, skipped: int = 0) -> None:
        self._model = model
        self._precision = Precision(autocast is not None, autocast or _dtype_of(model))
        self._skipped_earlier = skipped
        self._scales = _Scales()
        self._look: _Look | None = None
        self._underflow: torch.Tensor | None = None

    def begin(self, scaler: Any) -> None:
        """Note the loss scale that the training starts from; this synchronizes."""
        self._scales.begin(scaler)

    def look(self) -> None:
        """Look closely at the step of the optimizer that begins, unless that is done already."""
        if self._look is None:
            self._look = _Look(self._model, self._precision)

    def stepped(self, scaler: Any) -> None:
        """Note one ``scaler.update()``; call it between any two of them."""
        self._scales.observe(scaler)

    def end_of_step(self) -> None:
        """Take in what the look at this step saw, if there was one."""
        if self._look is not None:
            self._look.close()
            self._precision = self._look.precision
            self._underflow = self._look.underflow()
            self._look = None

    close = end_of_step

    @property
    def skipped(self) -> int:
        """How many steps were skipped; this synchronizes."""
        return self._skipped_earlier + self._scales.read()[1]

    def figures(self) -> dict[str, float]:
        """Return the figures by their names; this synchronizes once or twice.

        ``amp/enabled`` is 1 under autocast and 0 else; ``amp/precision`` the bits of the dtype that
        matrix products return; ``amp/loss_scale`` is 1 without a scaler; ``amp/skipped_steps`` is
        their number; ``amp/grad_underflow`` is a share, left out until a step was looked at.
        """
        scale, skipped = self._scales.read()
        found = {
            "amp/enabled": float(self._precision.autocast),
            "amp/precision": float(self._precision.dtype.itemsize * 8),
            "amp/loss_scale": scale,
            "amp/skipped_steps": float(self._skipped_earlier + skipped),
        }
        if self._underflow is not None:
            lost, counted = self._underflow.tolist()
            found["amp/grad_underflow"] = lost / counted
        return found


class _Scales:
    """The loss scale, and how often it fell: it falls when a step is skipped.

    Both stay on the device until they are read.
    """

    def __init__(self) -> None:
        self._first = 1.0
        self._last: torch.Tensor | None = None
        self._falls: torch.Tensor | None = None

    def begin(self, scaler: Any) -> None:
        if scaler is not None and scaler.is_enabled():
            self._first = float(scaler.get_scale())

    def observe(self, scaler: Any) -> None:
        if scaler is None or not scaler.is_enabled() or scaler._scale is None:
            return
        now = scaler._scale.detach()
        if self._last is None or self._falls is None:
            self._last = torch.full_like(now, self._first)
            self._falls = torch.zeros_like(now)
        self._falls += now < self._last
        self._last.copy_(now)

    def read(self) -> tuple[float, int]:
        """Return the scale and how often it fell."""
        if self._last is None or self._falls is None:
            return self._first, 0
        scale, falls = torch.stack((self._last, self._falls)).tolist()
        return scale, int(falls)


class _Look:
    """One step of the optimizer, looked at closely by hooks that are gone afterwards."""

    def __init__(self, model: Module, expected: Precision) -> None:
        self.precision = expected
        self._counts: dict[int, torch.Tensor] = {}
        self._forward = [
            module.register_forward_hook(self._forwarded) for module in _multiplying(model)
        ]
        self._backward = [
            parameter.register_post_accumulate_grad_hook(self._accumulated(index))
            for index, parameter in enumerate(model.parameters())
            if parameter.requires_grad
        ]

    def close(self) -> None:
        for handle in (*self._forward, *self._backward):
            handle.remove()

    def underflow(self) -> torch.Tensor | None:
        """Return [elements that underflowed, elements that count], or None if there are none."""
        if not self._counts:
            return None
        # The tensors of a model that is spread over devices are brought to one.
        device = next(iter(self._counts.values())).device
        return torch.stack([count.to(device) for count in self._counts.values()]).sum(dim=0)

    def _forwarded(self, _: Module, __: object, output: object) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        product = output[0] if isinstance(output, tuple) else output
        if isinstance(product, torch.Tensor) and product.is_floating_point():
            on = torch.is_autocast_enabled(product.device.type)
            self.precision = Precision(on, product.dtype)
            for handle in self._forward:  # the first product will do
                handle.remove()

    def _accumulated(self, index: int) -> Callable[[torch.Tensor], None]:
        def accumulated(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            if type(gradient) is torch.Tensor and gradient.numel() and not gradient.is_sparse:
                # With accumulation, the last micro-batch's call is the one that stays.
                self._counts[index] = underflow_of(gradient, self.precision.dtype)

        return accumulated


def underflow_of(gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Count the elements of a scaled gradient that are too small for a dtype.

    Too small is what is nearer to zero than the dtype's smallest normal number: it has lost digits,
    or all of them. A row or a column that is zero throughout, such as that of a token which did not
    occur, does not count, unless all of the gradient is zero.

    Args:
        gradient: of any shape and a floating-point dtype, multiplied by the loss scale.
        dtype: the dtype that the backward pass computes in.

    Returns:
        Two integers on the gradient's device: how many are too small, of how many that count. Of a
        gradient of more than `LARGEST` elements, these are those of every n-th row.
    """
    rows = gradient.detach()
    rows = rows.reshape(1) if rows.dim() == 0 else rows[:: -(-rows.numel() // LARGEST) or 1]
    rows = rows.reshape(len(rows), -1)
    nonzero = rows != 0
    counts = nonzero.any(dim=1, keepdim=True) & nonzero.any(dim=0, keepdim=True)
    counts = counts | ~nonzero.any()
    small = rows.abs() < torch.finfo(dtype).tiny
    return torch.stack(((small & counts).sum(), counts.sum()))


def _dtype_of(model: Module) -> torch.dtype:
    """Return the dtype of a model's first floating-point parameter."""
    found = (each.dtype for each in model.parameters() if each.is_floating_point())
    return next(found, torch.get_default_dtype())


def _multiplying(model: Module) -> Iterator[Module]:
    """Yield the modules whose weights are matrices; none if the model is compiled in part."""
    modules = list(model.modules())
    if any(_is_compiled(module) for module in modules):
        return
    for module in modules:
        if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag, torch.jit.ScriptModule)):
            continue
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
            yield module


def _is_compiled(module: Module) -> bool:
    # By torch.compile(module), module.compile(), or Lightning's fit(torch.compile(module)).
    return (
        "_orig_mod" in module._modules
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None
    )
