"""Judge the speed: decide the gate of the speedup, or say why it stays open."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from pytest_amp import units
from pytest_amp.judge import abstain, contention, modes, sequential
from pytest_amp.judge.case import Limits
from pytest_amp.observations import Observations, Timing
from pytest_amp.results.values import Estimate, Gate, GateVerdict

# The same two steps differ by this much from one process to the next (because of where their memory
# lies and which clock they get), even if the pairs within one process agree to the last digit. A
# speedup nearer to the threshold would pass today and fail tomorrow.
RESOLUTION = 0.005
# A block alone has to lie this many times beyond all pairs before it is told.
ALONE = 1.1


def estimate(timing: Timing | None, error_rate: float) -> Estimate | None:
    """Estimate the speedup from the pairs; return None if there are none."""
    if timing is None or not timing.ratios:
        return None
    low, high = abstain.interval(timing.ratios, error_rate) or (None, None)
    return Estimate(timing.ratios, low, high, timing.block_steps)


def decision(
    timing: Timing, threshold: float, error_rate: float, pairs: int | None = None
) -> Literal["pass", "fail", "inconclusive"] | None:
    """Return the sequential test's answer, if it is clear of the threshold by `RESOLUTION`.

    There is none either while what other work took from the arms could have made it.

    Args:
        timing: the pairs.
        threshold: of the speedup.
        error_rate: the bound on the probability of a wrong answer.
        pairs: how many of the pairs to ask; by default all.

    Returns:
        "inconclusive" if the speedup is known to be nearer to the threshold, so that more pairs
        would not help; None if more pairs would help.
    """
    ratios = timing.ratios[:pairs]
    low, high = threshold * (1 - RESOLUTION), threshold * (1 + RESOLUTION)
    if abstain.decide(ratios, high, error_rate) == "pass":
        return "pass" if contention.agrees(timing, threshold, pairs) else None
    if abstain.decide(ratios, low, error_rate) == "fail":
        return "fail" if contention.agrees(timing, threshold, pairs) else None
    bounds = abstain.interval(ratios, error_rate)
    return "inconclusive" if bounds and low <= bounds[0] and bounds[1] < high else None


def first_decision(
    timing: Timing, threshold: float, error_rate: float
) -> tuple[Literal["pass", "fail", "inconclusive"] | None, int]:
    """Return the first answer, and the number of pairs that it took.

    Pairs that came later can't take it back. If timing went on, as it does for a comparison, the
    evidence of all pairs together may be weaker again.
    """
    last = len(timing.ratios)
    for pairs in range(abstain.fewest_pairs(error_rate), last + 1):
        if not (abstain.is_worth_a_look(pairs) or pairs == last):
            continue
        if answer := decision(timing, threshold, error_rate, pairs):
            return answer, pairs
    return None, last


def gate(seen: Observations, limits: Limits) -> Gate:
    """Return the gate of the speedup."""
    wanted = limits.min_speedup
    measured = estimate(seen.timing, limits.error_rate)
    verdict: GateVerdict
    if seen.timing is None:
        reason = "static run: nothing was timed" if limits.static else "nothing was timed"
        reason = f"nothing was timed: {seen.untimed}" if seen.untimed else reason
        return Gate("speedup", wanted, None, None, None, "not_gated", reason)
    if measured is None:
        verdict = "not_gated" if wanted is None else "inconclusive"
        return Gate("speedup", wanted, None, None, None, verdict, _left_out(seen.timing))
    value, low, high = measured.value, measured.low, measured.high
    sample = f"{units.plural(measured.pairs, 'pair')} of {measured.block_steps}-step blocks"
    if wanted is None:
        return Gate("speedup", None, value, low, high, "not_gated", f"{measured} ({sample})")
    answer, pairs = first_decision(seen.timing, wanted, limits.error_rate)
    if answer != decision(seen.timing, wanted, limits.error_rate):
        sample += f", decided after {pairs}"
    threshold = units.ratio(wanted)
    if answer == "pass":
        verdict, reason = "pass", f"{measured} is at least {threshold}"
    elif answer == "fail":
        verdict, reason = "fail", f"{measured} is {below(threshold, 1 - value / wanted)}"
    elif answer == "inconclusive":
        verdict = "inconclusive"
        reason = (
            f"{measured} is {threshold} to within {units.share(RESOLUTION)}, which the next "
            "process may see otherwise; set a threshold further from the truth"
        )
    else:
        verdict = "inconclusive"
        reason = _open(seen.timing, measured, wanted, limits)
    return Gate("speedup", wanted, value, low, high, verdict, f"{reason} ({sample})")


def _open(timing: Timing, measured: Estimate, wanted: float, limits: Limits) -> str:
    """Say why the speed gate has no answer, and what would give it one."""
    ratios, threshold = timing.ratios, units.ratio(wanted)
    looks = f"{measured} looks {'above' if measured.value >= wanted else 'below'} {threshold}, but"
    if abstain.decide(ratios, wanted, limits.error_rate):
        if disturbed := contention.could_have_made(timing, wanted):
            return f"{looks} {disturbed}"
    elif sequential.decide(ratios, wanted, limits.error_rate):
        return (
            f"{looks} pairs follow one another, so that {len(ratios)} say no more than "
            f"{modes.as_good_as(ratios)}: {modes.found(timing)}; {modes.remedy(timing)}"
        )
    return (
        f"{measured} can't be told from {threshold} within max_time={limits.max_time:g} s; "
        f"{_advice(timing, limits)}"
    )


def _left_out(timing: Timing) -> str:
    pairs = units.plural(timing.skipping_pairs, "pair")
    return f"the GradScaler skipped steps in {pairs} of blocks, and a skipped step has no speed"


def _advice(timing: Timing, limits: Limits) -> str:
    if timing.skipping_pairs >= len(timing.ratios):
        return _left_out(timing)
    needed = abstain.fewest_pairs(limits.error_rate)
    if len(timing.ratios) < needed:
        seconds = math.ceil(needed * timing.elapsed_s / len(timing.ratios) * 1.1)
        return f"the fewest pairs that could decide ({needed}) need about max_time={seconds}"
    if cause := contention.cause(contention.of(timing)):
        return cause
    return "raise max_time, quieten the machine, or set a threshold further from the truth"


def otherwise_alone(timing: Timing) -> str | None:
    """Return a note if a block of each arm alone shows another speedup than blocks by turns.

    It is one block, so it has to lie outside of all pairs, and by more than `ALONE`; also without
    the time in which one of its threads had no processor, which no cache explains. Where other
    processes keep processors busy, no block is alone.
    """
    if timing.alone_s is None or len(timing.ratios) < abstain.LEAST_PAIRS:
        return None
    if contention.has_company(contention.of(timing)):
        return None
    fp32_s, amp_s = timing.alone_s
    if not fp32_s or not amp_s:
        return None
    alone = fp32_s / amp_s
    beyond = _beyond(timing.ratios, alone)
    if not beyond or beyond != _beyond(timing.ratios, _undisturbed(timing, alone)):
        return None
    by_turns = [statistics.median(each) for each in (timing.fp32_step_s, timing.amp_step_s)]
    steps = " and ".join(
        f"{name} {units.duration(own)} (by turns {units.duration(other)})"
        for name, own, other in zip(contention.ARMS, timing.alone_s, by_turns, strict=True)
    )
    return (
        f"alone and behind a pause, the arms show {units.ratio(alone)}, and "
        f"{units.ratio(statistics.median(timing.ratios))} by turns: a step took {steps}; they take "
        "each other's caches, clocks or memory, and a training has them to itself"
    )


def _undisturbed(timing: Timing, alone: float) -> float:
    """Return the speedup of the blocks that ran alone without their threads' waits."""
    if not timing.alone_taken:
        return alone
    fp32, amp = (contention.with_processors(block) for block in timing.alone_taken)
    return alone * fp32 / amp


def _beyond(ratios: Sequence[float], ratio: float) -> int:
    """Return 1 for a ratio that is above all ratios by more than `ALONE`, -1 for one below."""
    return (ratio > max(ratios) * ALONE) - (ratio < min(ratios) / ALONE)


def below(limit: str, missing: float) -> str:
    """Say how much is missing as well, since rounded figures may look equal."""
    return f"below {limit} by {units.share(missing)}"
