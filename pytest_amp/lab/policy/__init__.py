"""CUDA's rules of autocast on a CPU, as the installed torch has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

CUDAS_DTYPE = "float16"
"""What autocast casts to on CUDA unless it is told."""


@contextmanager
def cuda_rules() -> Iterator[None]:
    """Let CPU autocast regions do what CUDA's do, in CUDA's default dtype."""
    from pytest_amp.lab.policy.arithmetic import rounded_products
    from pytest_amp.lab.policy.kernels import autocast_as_on_cuda
    from pytest_amp.lab.policy.regions import cuda_means_cpu

    with autocast_as_on_cuda(), rounded_products(), cuda_means_cpu():
        yield
