"""What a real training tells of its mixed precision: precision, loss scale, skips, underflow.

The meter watches every step of the optimizer on the device, and looks closely at a few of them: it
must not slow the training down, change it, or wait for the device in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn.modules.module import Module

LARGEST = 2**16
"""How many elements of one gradient are looked at; of a larger one, every n-th."""


class Precision(NamedTuple):
    """What matrix products of a training compute in.

    Attributes:
        autocast: whether autocast is on around them.
        dtype: the dtype of what they return; the narrowest, if they differ.
    """

    autocast: bool
    dtype: torch.dtype


class Meter:
    """What is known of one training so far.

    Args:
        model: the module that is trained.
        autocast: the dtype of the autocast that its trainer was asked for; None for none. It counts
            until a step was looked at, and where the model is compiled, since a hook would be too.
        compiled: whether the trainer compiles the model, which does not show on the model.
        skipped: how many steps were skipped earlier, in the training that this one resumes.
    """

    def __init__(
        self,
        model: Module,
        autocast: torch.dtype | None,
        compiled: bool = False,
        skipped: int = 0,
    ) -> None:
        self._model = model
        self._asked = autocast
        self._precision = Precision(autocast is not None, autocast or _dtype_of(model))
        self._compiled = compiled
        self._scales = _Scales(skipped)
        self._look: _Look | None = None
        self._underflow: torch.Tensor | None = None
        self.steps = 0
        _close_what_is_left_on(model)

    def begin(self, scaler: Any) -> None:
        """Note the loss scale that the training starts from; this synchronizes."""
        if scaler is None and self._asked is torch.float16:
            self._scales.known = False  # somebody else scales the loss, such as DeepSpeed
        self._scales.begin(scaler)

    def look(self) -> None:
        """Look closely at the step of the optimizer that begins, unless that is done already.

        The model's forward pass in the very first step is left alone: whatever compiles it would
        take our hooks in, and compile it again without them.
        """
        if self._look is None:
            forward = self.steps > 0 and not self._compiled
            self._look = _Look(self._model, self._precision, forward)

    def overflowed(self, found: torch.Tensor | bool | None) -> None:
        """Note whether a step of the optimizer is skipped; None if only the scale will tell."""
        self._scales.overflowed(found)

    def stepped(self, scaler: Any) -> None:
        """Note the scale behind a step, and what a look at the step saw."""
        self.steps += 1
        self._scales.stepped(scaler)
        look, self._look = self._look, None
        if look is not None:
            look.close()
            if look.error is not None:
                raise look.error
            self._precision = look.seen or self._precision
            self._underflow = look.underflow()

    def close(self) -> None:
        """Take the hooks away."""
        look, self._look = self._look, None
        if look is not None:
            look.close()

    @property
    def skipped(self) -> int:
        """How many steps were skipped; this synchronizes."""
        return self._scales.read()[1]

    def figures(self) -> dict[str, float]:
        """Return the figures by their names; this synchronizes twice at most.

        ``amp/enabled`` is 1 under autocast and 0 otherwise; ``amp/precision`` the bits of the dtype
        that matrix products return; ``amp/loss_scale`` is 1 without a scaler; ``amp/skipped_steps``
        is their number; ``amp/grad_underflow`` is a share. What is not known is left out.
        """
        found = {
            "amp/enabled": float(self._precision.autocast),
            "amp/precision": float(self._precision.dtype.itemsize * 8),
        }
        if self._scales.known:
            scale, skipped = self._scales.read()
            found |= {"amp/loss_scale": scale, "amp/skipped_steps": float(skipped)}
        if self._underflow is not None:
            small, nonzero = self._underflow.tolist()
            found["amp/grad_underflow"] = small / nonzero if nonzero else 1.0
        return found


class _Scales:
    """The loss scale and the number of skipped steps, which stay on the device until read."""

    def __init__(self, skipped: int) -> None:
        self.known = True
        self._skipped = skipped
        self._first = 1.0
        self._last: torch.Tensor | None = None
        self._counted: torch.Tensor | None = None
        self._scale_tells = True

    def begin(self, scaler: Any) -> None:
        if scaler is not None and scaler.is_enabled():
            self._first = float(scaler.get_scale())

    def overflowed(self, found: torch.Tensor | bool | None) -> None:
        self._scale_tells = found is None
        if isinstance(found, torch.Tensor):
            self._count(found)
        elif found:
            self._skipped += 1

    def _count(self, found: torch.Tensor) -> None:
        more = found.detach().any().int()
        self._counted = more if self._counted is None else self._counted + more

    def stepped(self, scaler: Any) -> None:
        if scaler is None or not scaler.is_enabled() or scaler._scale is None:
            return
        now = scaler._scale.detach().clone()  # update() writes in place
        before, self._last = self._last, now
        if self._scale_tells:  # it falls when a step is skipped
            self._count(now < (self._first if before is None else before))

    def read(self) -> tuple[float, int]:
        """Return the scale, and how many steps were skipped."""
        scale = self._first if self._last is None else float(self._last)
        return scale, self._skipped + (0 if self._counted is None else int(self._counted))


class _Look:
    """One step of the optimizer, looked at closely by hooks that are gone afterwards.

    Attributes:
        seen: the precision that the forward pass was seen to have; None if nothing was seen.
        error: what a hook raised, which must not end the step.
    """

    def __init__(self, model: Module, expected: Precision, forward: bool) -> None:
        self.seen: Precision | None = None
        self.error: Exception | None = None
        self._expected = expected
        self._counts: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []
        _LEFT_OPEN[model] = self
        try:
            for module in _multiplying(model) if forward else ():
                self._handles.append(module.register_forward_hook(self._forwarded))
            for index, parameter in enumerate(model.parameters()):
                if parameter.requires_grad:
                    hook = self._accumulated(index)
                    self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def underflow(self) -> torch.Tensor | None:
        """Return the sums of `underflow_of`; None if there was no gradient to look at."""
        if not self._counts:
            return None
        # The tensors of a model that is spread over devices are brought to one.
        device = next(iter(self._counts.values())).device
        return torch.stack([count.to(device) for count in self._counts.values()]).sum(dim=0)

    def _forwarded(self, _: Module, __: object, output: object) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self.error:
            return
        try:
            made = output[0] if isinstance(output, tuple) else output
            if isinstance(made, torch.Tensor) and made.is_floating_point():
                on = torch.is_autocast_enabled(made.device.type)
                if self.seen is None or made.dtype.itemsize < self.seen.dtype.itemsize:
                    self.seen = Precision(on, made.dtype)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def _accumulated(self, index: int) -> Callable[[torch.Tensor], None]:
        def accumulated(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            if type(gradient) is not torch.Tensor or gradient.layout is not torch.strided:
                return
            try:
                # With accumulation, the last micro-batch's call is the one that stays.
                dtype = (self.seen or self._expected).dtype
                self._counts[index] = underflow_of(gradient, dtype)
            except Exception as error:  # noqa: BLE001
                self.error = error

        return accumulated


_LEFT_OPEN: WeakKeyDictionary[Module, _Look] = WeakKeyDictionary()


def _close_what_is_left_on(model: Module) -> None:
    """Close a look at a step that raised, where nobody was told of it."""
    if (look := _LEFT_OPEN.pop(model, None)) is not None:
        look.close()


def underflow_of(gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Count the elements of a scaled gradient that are too small for a dtype.

    Too small is what is not zero and nearer to zero than the dtype's smallest normal number: it has
    lost digits. What has lost all of them is zero, as is much that nothing was lost of, such as the
    row of a token that did not occur; so zeros are left out.

    Args:
        gradient: of any shape and a floating-point dtype, multiplied by the loss scale.
        dtype: the dtype that the backward pass computes in.

    Returns:
        Two numbers on the gradient's device: how many elements are too small, and how many are not
        zero; estimated from every n-th element of a gradient of more than `LARGEST`.
    """
    found = gradient.detach()
    # In the order in which they are in memory, a dense tensor's elements can be viewed in a row.
    in_order = sorted(range(found.dim()), key=found.stride, reverse=True)
    row = found.permute(in_order).reshape(-1)
    every = -(-row.numel() // LARGEST) or 1
    row = row[:: every if every == 1 else every | 1]  # odd, so as not to fall into one column
    size = row.abs()
    counts = torch.stack((((size > 0) & (size < torch.finfo(dtype).tiny)).sum(), (size > 0).sum()))
    return counts * (found.numel() / max(row.numel(), 1))


def _dtype_of(model: Module) -> torch.dtype:
    """Return the dtype of a model's first floating-point parameter."""
    found = (each.dtype for each in model.parameters() if each.is_floating_point())
    return next(found, torch.get_default_dtype())


def _multiplying(model: Module) -> Iterator[Module]:
    """Yield the modules that may multiply by a matrix; none if the model is compiled in part."""
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
