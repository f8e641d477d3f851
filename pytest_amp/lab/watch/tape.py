"""Keep a run's scalars on their devices, in memory that does not grow from step to step."""

from __future__ import annotations

import torch
from torch.utils._mode_utils import no_dispatch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.tensors import plain_parts

__tracebackhide__ = unless_our_bug

FIRST = 256

Kind = tuple[torch.device, torch.dtype]


class Tape:
    """Copies of scalar tensors, made without waiting for the device.

    Cloning each would take a block of the allocator's (512 bytes on CUDA) in every step, and look
    like a leak. Memory is taken in pieces instead, each twice as large as the last.
    """

    def __init__(self) -> None:
        self._free: dict[Kind, list[torch.Tensor]] = {}
        self._sizes: dict[Kind, int] = {}

    @torch.no_grad()
    def keep(self, value: torch.Tensor) -> torch.Tensor:
        """Return a copy of the scalar as it is now, on the same device."""
        parts = plain_parts(value)
        if parts is None or len(parts) != 1 or parts[0].numel() != 1:
            return value.detach().clone()
        [part] = parts
        with no_dispatch():  # the copy is not one of the step's operators
            kept = self._slot((part.device, part.dtype))
            return kept.copy_(part.reshape(()))

    def _slot(self, kind: Kind) -> torch.Tensor:
        free = self._free.setdefault(kind, [])
        if not free:
            size = self._sizes[kind] = 2 * self._sizes.get(kind, FIRST // 2)
            device, dtype = kind
            free += torch.empty(size, dtype=dtype, device=device).unbind()[::-1]
        return free.pop()
