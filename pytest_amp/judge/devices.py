"""What GPUs can reach at most, as their manufacturer gives it, to forecast a speedup there.

The figures are those of dense operands, without sparsity, from NVIDIA's data sheets "T4 Tensor Core
GPU" (2019), "A10 Tensor Core GPU" (2021), "L4 Tensor Core GPU" (2023), "A100 Tensor Core GPU"
(2021; the 80 GB SXM card), "L40S GPU" (2023), "H100 Tensor Core GPU" (2023; SXM), "H200 Tensor Core
GPU" (2024; SXM) and "HGX B200" (2025; per GPU). Where a sheet gives a rate with sparsity only, it
is halved here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from pytest_amp.judge.roofline import PRODUCTS, TF32, Ceilings, Curve

# Of their peaks, large products in reduced precision reach half or more, and memory 60% or more.
_PRODUCTS_REACH = (1.0, 0.5)
_MEMORY_REACHES = (1.0, 0.6)
# Seconds that the host needs for a call. A launch takes it 3.8 us where launches follow one another
# and 9.6 us where it waits for each: NVIDIA's developer blog, "Getting Started with CUDA Graphs"
# (2019). Python, the dispatcher and autograd add some, and as much in both arms: a function without
# a module around it took 2 us in benchmarks/results/forecast.txt.
_CALLS_S = ((3.8e-6, 0.0), (9.6e-6, 5e-6))


class Gpu(NamedTuple):
    """A GPU's peaks.

    Attributes:
        float32: TFLOP/s of float32 outside of tensor cores.
        tf32: TFLOP/s in TF32; None if it has none.
        half: TFLOP/s in float16, accumulated in float32, and in bfloat16.
        float8: TFLOP/s in float8; None if it has none.
        memory: GB/s between the chip and its memory.
        bfloat16: whether it multiplies in bfloat16.
    """

    float32: float
    tf32: float | None
    half: float
    float8: float | None
    memory: float
    bfloat16: bool = True

    def scenarios(self) -> list[Ceilings]:
        """Return what it may reach: the peaks first, then what real steps see of them."""
        reduced = {
            "float16": self.half,
            "bfloat16": self.half if self.bfloat16 else None,
            "float8_e4m3fn": self.float8,
            "float8_e5m2": self.float8,
        }
        wide = {"float32": self.float32, TF32: self.tf32 or self.float32}
        return [
            Ceilings(
                {
                    (PRODUCTS, dtype): Curve.flat(1e12 * rate * (share if dtype in reduced else 1))
                    for dtype, rate in {**wide, **reduced}.items()
                    if rate is not None
                },
                {"float32": Curve.flat(1e9 * self.memory * moved)},
                *calls_s,
            )
            for share, moved, calls_s in itertools.product(
                _PRODUCTS_REACH, _MEMORY_REACHES, _CALLS_S
            )
        ]


DEVICES: Mapping[str, Gpu] = {
    "T4": Gpu(8.1, None, 65.0, None, 320.0, bfloat16=False),
    "A10": Gpu(31.2, 62.5, 125.0, None, 600.0),
    "L4": Gpu(30.3, 60.0, 121.0, 242.5, 300.0),
    "A100": Gpu(19.5, 156.0, 312.0, None, 2039.0),
    "L40S": Gpu(91.6, 183.0, 362.0, 733.0, 864.0),
    "H100": Gpu(67.0, 494.5, 989.5, 1979.0, 3350.0),
    "H200": Gpu(67.0, 494.5, 989.5, 1979.0, 4800.0),
    "B200": Gpu(75.0, 1125.0, 2250.0, 4500.0, 7700.0),
}
