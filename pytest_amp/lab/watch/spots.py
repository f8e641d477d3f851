"""Sample a tensor at a few spots, to tell how far it is from another arm's."""

from __future__ import annotations

import math
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.tensors import plain_parts, real
from pytest_amp.observations import Sample

__tracebackhide__ = unless_our_bug

_KEPT = 255


@torch.no_grad()
def spots(value: Any) -> Sample:
    """Return the norm, and elements at even distances; empty if the tensor is not a plain one.

    The elements are scaled to represent all, so that two samples are about as far apart as their
    tensors are. The norm shows what single elements do.
    """
    if isinstance(value, float):
        return (abs(value), value)
    parts = [real(part) if part.is_complex() else part for part in plain_parts(value) or ()]
    if len(parts) != 1 or not parts[0].numel():
        return ()
    flat = parts[0].reshape(-1)
    is_half = flat.element_size() == 2 and flat.is_floating_point()
    wide = flat if is_half else flat.float()
    norm = torch.linalg.vector_norm(wide, dtype=torch.float32)
    some = wide[:: -(-wide.numel() // _KEPT)].float()
    some = some * math.sqrt(wide.numel() / some.numel())
    return (*torch.cat([norm.reshape(1), some]).tolist(),)
