"""Find the speedup that is attainable on the device on which a test was timed.

The reference's step was timed there, and the device's ceilings were measured. The candidate's step
is scaled from that, part by part.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import NamedTuple

from pytest_amp.judge.roofline import NOTHING_SEEN, Ceilings, Spent, Work, kind_of, shares_of, spent
from pytest_amp.observations import OpRow
from pytest_amp.results.forecast import HERE, Forecast

# Products in reduced precision reach this share of what the reference's reach of their ceilings, or
# more.
REDUCED_REACH = 0.6
# What a short measurement finds of a ceiling may lack a tenth of it, and the same work in memory
# may be a tenth faster in one arm than in the other, by where its data lie.
CEILINGS_LACK = 1.1
# A CPU converts what other operators read, so that they take this much longer, or less.
OTHERS_TAKE = 1.1
# Products with fewer FLOPs to an element that they move are as good as memory traffic.
LIGHT = 32
_BYTES = {"float64": 8, "float32": 4}


class Timed(NamedTuple):
    """What was measured of the reference's step.

    Attributes:
        step_s: its seconds.
        host_s: those of them in which no operator runs.
    """

    step_s: float
    host_s: float


def attainable(
    reference: Work, candidate: Work, best: Ceilings, usual: Ceilings, timed: Timed
) -> Forecast:
    """Return the range of speedups on the device that the reference's step was timed on.

    The upper end is the attainable speedup. There the candidate's products reach their ceilings,
    its other operators are faster than the reference's by as much as they move fewer bytes, and
    by what `CEILINGS_LACK` says, and products of the same dtype in both arms, and the host, take
    as long in both.

    At the lower end the products lose as much against their ceilings as the reference's do, and
    more, as `REDUCED_REACH` says, and other operators are slower than the reference's, as
    `OTHERS_TAKE` says.

    Args:
        reference: what a step of the reference has to do.
        candidate: what a step of the candidate has to do.
        best: the ceilings of the device.
        usual: what products of even shapes reach, and casts of large tensors.
        timed: what was measured of the reference's step.
    """
    heavy = _heavy_only(reference), _heavy_only(candidate)
    at_best = _scaled(*heavy, best, timed)
    at_worst = [
        _scaled(*arms, usual, timed, worst=True) for arms in ((reference, candidate), heavy)
    ]
    if at_best is None or None in at_worst:
        dtypes = ", ".join(sorted(candidate.product_dtypes | reference.product_dtypes))
        return Forecast(HERE, reason=f"not all ceilings could be measured ({dtypes})")
    if not at_best.step_s:
        return Forecast(HERE, reason=NOTHING_SEEN)
    slowest_s = max(each.step_s for each in (at_best, *at_worst) if each)
    return Forecast(
        HERE, timed.step_s / slowest_s, timed.step_s / at_best.step_s, shares_of([at_best])
    )


def _scaled(
    reference: Work, candidate: Work, ceilings: Ceilings, timed: Timed, *, worst: bool = False
) -> Spent | None:
    """Return where the candidate's step goes, scaled from what was measured of the reference's.

    The result is None if there are no rates for what they run.
    """
    before, after = spent(reference, ceilings), spent(candidate, ceilings)
    if before is None or after is None:
        return None
    dtypes = reference.product_dtypes
    model_s = _products_s(reference, ceilings, dtypes)
    products_s, memory_s = _parts(reference, model_s, before.memory + before.casts, timed, ceilings)
    reached = min(1.0, model_s / products_s) if products_s else 1.0
    same_s = _products_s(candidate, ceilings, candidate.product_dtypes & dtypes) / reached
    faster_s = _products_s(candidate, ceilings, candidate.product_dtypes - dtypes)
    moving_s, moving_before_s = _moving_s(candidate, ceilings), _moving_s(reference, ceilings)
    if not memory_s or not moving_before_s:  # then there is nothing to scale
        memory_s, moving_before_s = moving_s, moving_s or 1.0
    ratio = moving_s / moving_before_s
    if worst:
        faster_s /= reached * REDUCED_REACH
        memory_s *= max(1.0, ratio) * OTHERS_TAKE
        return Spent(same_s + faster_s, memory_s, after.casts, timed.host_s)
    faster_s /= CEILINGS_LACK
    return Spent(same_s + faster_s, memory_s * ratio / CEILINGS_LACK, after.casts, timed.host_s)


def _heavy_only(work: Work) -> Work:
    """Return the work with light products, such as depthwise convolutions, as other operators.

    They wait for memory, so that what heavy products reach says nothing of them.
    """

    def light(row: OpRow) -> bool:
        elements = row.moved / (_BYTES.get(row.dtype) or (1 if "float8" in row.dtype else 2))
        return 0 < row.flops < LIGHT * elements

    return work._replace(rows=[replace(row, flops=0) if light(row) else row for row in work.rows])


def _parts(
    reference: Work, products_s: float, others_s: float, timed: Timed, ceilings: Ceilings
) -> tuple[float, float]:
    """Return the measured seconds of the reference's products, and of its other operators.

    On a CPU the operators themselves were timed. Elsewhere the modelled seconds are in proportion.
    """
    if not ceilings.overlaps:
        products_s = sum(row.seconds for row in reference.rows if row.flops)
        others_s = sum(row.seconds for row in reference.rows if not row.flops)
    share = products_s / (products_s + others_s) if products_s + others_s else 0.0
    busy_s = max(0.0, timed.step_s - timed.host_s)
    return share * busy_s, (1 - share) * busy_s


def _products_s(work: Work, ceilings: Ceilings, dtypes: Set[str]) -> float:
    """Return the seconds of the products that run in one of the dtypes, by their FLOPs."""
    found = [
        (row, rate)
        for row in work.rows
        if row.flops
        and work.dtype(row) in dtypes
        and (rate := ceilings.rate(kind_of(row), work.dtype(row)))
    ]
    return sum(row.count * rate.seconds(row.flops / row.count) for row, rate in found)


def _moving_s(work: Work, ceilings: Ceilings) -> float:
    """Return the seconds in which other operators move their bytes, all at one dtype's rates."""
    return sum(
        row.count * ceilings.moving("float32", row.moved / row.count)
        for row in work.rows
        if row.moved and not row.flops and not row.is_cast
    )
