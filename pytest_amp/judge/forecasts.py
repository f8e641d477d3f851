"""Forecast a test's speedup, elsewhere from GPUs' data sheets, here from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from pytest_amp.judge import contention
from pytest_amp.judge.attainable import Timed, attainable
from pytest_amp.judge.devices import DEVICES
from pytest_amp.judge.roofline import NOTHING_SEEN, Ceilings, Work, forecast, kind_of
from pytest_amp.observations import Observations, ParityRun
from pytest_amp.recipes import Recipe
from pytest_amp.results.forecast import HERE, Forecast


class Arms(NamedTuple):
    """What a step of each arm has to do."""

    reference: Work
    candidate: Work

    @classmethod
    def of(cls, seen: Observations) -> Arms:
        """Return what the inspected steps had to do."""
        return cls(_work(seen.fp32, seen.recipes.fp32), _work(seen.amp, seen.recipes.amp))

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of products that they run."""
        return frozenset(kind_of(row) for work in self for row in work.rows if row.flops)

    @property
    def dtypes(self) -> frozenset[str]:
        """The dtypes that they multiply in."""
        return self.reference.product_dtypes | self.candidate.product_dtypes


def _work(run: ParityRun, recipe: Recipe) -> Work:
    rows = run.operators.rows if run.operators else ()
    return Work(rows, tf32=recipe.matmul == "tf32")


def not_seen(seen: Observations) -> str | None:
    """Return why no forecast can be made of what was seen; None if one can."""
    operators = [run.operators for run in (seen.fp32, seen.amp)]
    if not all(each and each.rows for each in operators):
        return NOTHING_SEEN
    lost = {name: None for each in operators if each for name in (*each.hidden, *each.unknown)}
    return f"the record of the operators lacks {', '.join(lost)}" if lost else None


def not_attainable(seen: Observations) -> str | None:
    """Return why the attainable speedup can't be told; None if it can."""
    if seen.timing is None or not seen.timing.fp32_step_s:
        return "nothing was timed"
    if reason := not_seen(seen):
        return reason
    if seen.timing.traced:
        return "Python was traced or profiled, so that the host's share of a step is not known"
    if contention.on_processors(contention.of(seen.timing)):
        return "other work took processors from the arms, and would from what measures the ceilings"
    is_compiled = seen.fp32.compiled or seen.amp.compiled
    return "what torch.compile fuses can't be seen" if is_compiled else None


def elsewhere(seen: Observations, names: Iterable[str]) -> tuple[Forecast, ...]:
    """Return a forecast for each of the GPUs, which `DEVICES` has to know."""
    if reason := not_seen(seen):
        return tuple(Forecast(name, reason=reason) for name in names)
    arms = Arms.of(seen)
    return tuple(forecast(name, *arms, DEVICES[name].scenarios()) for name in names)


def here(seen: Observations, best: Ceilings, usual: Ceilings) -> Forecast:
    """Return the range of speedups on the device that the test was timed on.

    Args:
        seen: everything that was seen of the test.
        best: what the device reaches at best.
        usual: what it reaches usually.
    """
    if reason := not_attainable(seen):
        return Forecast(HERE, reason=reason)
    timing, arms = seen.timing, Arms.of(seen)
    assert timing is not None
    step_s = statistics.median(timing.fp32_step_s)
    if best.overlaps:
        busy_s = timing.busy_s
        idle_s = 0.0 if busy_s is None else statistics.median(timing.amp_step_s) - busy_s
    else:
        idle_s = step_s * _hosts_share(seen, step_s)
    return attainable(*arms, best, usual, Timed(step_s, min(max(0.0, idle_s), step_s)))


def _hosts_share(seen: Observations, step_s: float) -> float:
    """Return the share of the reference's step in which no operator of a CPU runs.

    Operators were timed in one inspected step of each arm, which is compared with the plain steps
    beside it: by the time that the timed steps run, the machine may be faster or slower. The host
    has the same to do in both arms, so the smaller of two differences is the less disturbed one.
    """
    idle_s = [
        run.fastest_step_s - sum(row.seconds for row in run.operators.rows)
        for run in (seen.fp32, seen.amp)
        if run.operators
    ]
    return min(idle_s) / (seen.fp32.fastest_step_s or step_s)
