"""Forecast a step's time from the operators that it runs and the ceilings of a device: a roofline.

A call takes as long as its FLOPs at the device's rate for their dtype, or as its memory traffic if
that takes longer. Calls are added up. An accelerator works while the host launches the next calls,
so there the longer of the two counts; on a CPU both are the same processor's time.

After S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance model
for multicore architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pytest_amp.observations import OpRow
from pytest_amp.results.forecast import Forecast

NOTHING_SEEN = "no operators were seen in a step"
PRODUCTS = "products"
# Kinds of products that have kernels, and so ceilings, of their own, by a part of the name.
_KINDS = {"conv": "convolutions", "attention": "attention", "lstm": "recurrence"}
_KINDS |= {"rnn": "recurrence", "gru": "recurrence"}
BACKWARD = " backward"
TF32 = "tf32"


class Curve(NamedTuple):
    """What a device reaches, by the size of a call.

    Attributes:
        sizes: FLOPs or bytes of a call, ascending.
        rates: FLOPs or bytes per second that a call of that size reaches.
    """

    sizes: tuple[float, ...]
    rates: tuple[float, ...]

    @classmethod
    def flat(cls, rate: float) -> Curve:
        """Return the curve of a device that reaches one rate at any size."""
        return cls((1.0,), (rate,))

    def seconds(self, size: float) -> float:
        """Return the seconds of a call, with its rate interpolated on logarithmic scales.

        A call that is smaller than all sizes takes as long as the smallest one, and one that is
        larger has the rate of the largest.
        """
        size = max(size, self.sizes[0])
        above = bisect_left(self.sizes, size)
        if above in (0, len(self.sizes)):
            return size / self.rates[above - (above > 0)]
        (low, high), (slow, fast) = (
            each[above - 1 : above + 1] for each in (self.sizes, self.rates)
        )
        share = math.log(size / low) / math.log(high / low)
        return float(size / (slow * (fast / slow) ** share))


@dataclass(frozen=True)
class Ceilings:
    """What a device can reach.

    Attributes:
        rates: FLOPs per second by kind of product and dtype; "tf32" is a dtype here. A kind that
            is not there has the rates of "products".
        traffic: bytes per second by dtype. A dtype that is not there has float32's.
        call_s: the seconds that the host needs to launch a call, if the rates do not contain them.
        python_s: those that Python, the dispatcher and autograd need besides for a call that the
            model itself makes, which a cast is not.
        overlaps: whether the device works while the host makes the next calls.
    """

    rates: Mapping[tuple[str, str], Curve]
    traffic: Mapping[str, Curve]
    call_s: float = 0.0
    python_s: float = 0.0
    overlaps: bool = True

    def rate(self, kind: str, dtype: str) -> Curve | None:
        """Return the rate for a kind of product in a dtype; None if the device has none for it."""
        return self.rates.get((kind, dtype)) or self.rates.get((PRODUCTS, dtype))

    def moving(self, dtype: str, size: float) -> float:
        """Return the seconds in which a call moves so many bytes of a dtype."""
        return (self.traffic.get(dtype) or self.traffic["float32"]).seconds(size)


class Work(NamedTuple):
    """What an arm's step has to do.

    Attributes:
        rows: its operators.
        tf32: whether float32 operands are multiplied in TF32.
    """

    rows: Sequence[OpRow]
    tf32: bool = False

    def dtype(self, row: OpRow) -> str:
        """Return the dtype that a product is computed in."""
        return TF32 if self.tf32 and row.dtype == "float32" else row.dtype

    @property
    def product_dtypes(self) -> frozenset[str]:
        """The dtypes that its products are computed in."""
        return frozenset(self.dtype(row) for row in self.rows if row.flops)


class Spent(NamedTuple):
    """The seconds of a step, by what they are spent on.

    Attributes:
        products: matrix products, convolutions, attention and recurrent layers.
        memory: reading and writing memory, in all other operators and in products that wait for it.
        casts: copying tensors into another dtype.
        host: the host's work, launches included, while the device waits for it.
    """

    products: float
    memory: float
    casts: float
    host: float

    @property
    def step_s(self) -> float:
        """The seconds of the step."""
        return sum(self)


def spent(work: Work, ceilings: Ceilings) -> Spent | None:
    """Return where a step's time goes at the ceilings of a device.

    The result is None if the device has no rate for a dtype in which the step multiplies.
    """
    products = memory = casts = host_s = 0.0
    for row in work.rows:
        if not row.moved and not row.flops:
            continue
        # An accelerator's optimizers update all parameters in one call of each operator.
        calls = 1 if row.phase == "update" and ceilings.overlaps else row.count
        host_s += calls * (ceilings.call_s + (0.0 if row.is_cast else ceilings.python_s))
        moving = row.count * ceilings.moving(row.dtype, row.moved / row.count)
        if row.flops:
            rate = ceilings.rate(kind_of(row), work.dtype(row))
            if rate is None:
                return None
            multiplying = row.count * rate.seconds(row.flops / row.count)
            if multiplying > moving:
                products += multiplying
            else:
                memory += moving
        elif row.is_cast:
            casts += moving
        else:
            memory += moving
    device_s = products + memory + casts
    host = max(0.0, host_s - device_s) if ceilings.overlaps else host_s
    return Spent(products, memory, casts, host)


def kind_of(row: OpRow) -> str:
    """Return the kind of product that a row's calls are, which decides what rates they reach."""
    name = row.op.partition("::")[2]
    kind = next((kind for part, kind in _KINDS.items() if part in name), PRODUCTS)
    return kind if kind == PRODUCTS or "backward" not in name else kind + BACKWARD


def forecast(
    device: str, reference: Work, candidate: Work, scenarios: Iterable[Ceilings]
) -> Forecast:
    """Return the range of speedups on a device.

    Args:
        device: its name.
        reference: what a step of the reference has to do.
        candidate: what a step of the candidate has to do.
        scenarios: what the device may reach. Each scenario holds for both arms.
    """
    ratios, shares = [], []
    for ceilings in scenarios:
        before, after = spent(reference, ceilings), spent(candidate, ceilings)
        if before is None or after is None:
            slow = sorted(_without_rates(reference, ceilings) | _without_rates(candidate, ceilings))
            reduced = all(name.startswith(("float16", "bfloat16", "float8")) for name in slow)
            what = "it has no fast path for {}" if reduced else "its rate for {} is not known here"
            return Forecast(device, reason=what.format(" and ".join(slow)))
        if not after.step_s:
            return Forecast(device, reason=NOTHING_SEEN)
        ratios.append(before.step_s / after.step_s)
        shares.append(after)
    return Forecast(device, min(ratios), max(ratios), shares_of(shares))


def _without_rates(work: Work, ceilings: Ceilings) -> set[str]:
    products = (row for row in work.rows if row.flops)
    return {work.dtype(row) for row in products if ceilings.rate(PRODUCTS, work.dtype(row)) is None}


def shares_of(spent_in: Sequence[Spent]) -> dict[str, float]:
    """Return the mean shares of the step's time, leaving out those of nothing."""
    found = {
        name: sum(getattr(each, name) / each.step_s for each in spent_in) / len(spent_in)
        for name in Spent._fields
    }
    return {name: share for name, share in found.items() if share > 0}
