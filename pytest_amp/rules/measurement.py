"""AMP0xx: whether the arms are comparable and the measurement can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pytest_amp import units
from pytest_amp.judge import contention, modes, sequential
from pytest_amp.judge.case import Case
from pytest_amp.judge.comparison import other_flags
from pytest_amp.judge.loss import draws_differ
from pytest_amp.observations import REDUCED, Operators, Start
from pytest_amp.recipes import Recipe
from pytest_amp.rules.autocast import unprepared
from pytest_amp.rules.base import Compared, NeverCalled, Word, rule
from pytest_amp.rules.places import where_it_ran

REPEATS_WITHIN = 1e-4
# Two random draws differ by more than their own size; rounding to bfloat16 moves an input by less
# than 1%.
ROUNDED = 0.05
# Weights are compared when their optimizer first steps. A step that moves them away and back before
# that, as sharpness-aware minimization does, leaves some float32 rounding.
MOVED_AND_BACK = 1e-5
# Among n fair pairs the autocorrelation has a spread of 1 / sqrt(n). At most 0.3% of tests exceed
# 2.5 times that, and none with fewer than 10 pairs. From an autocorrelation of 0.3 on, wrong
# decisions are about four times as frequent as the error rate says (benchmarks/error_rate.py).
SERIAL_SPREADS = 2.5
SERIAL = 0.3
WIDE = 0.05


def first_losses_differ(case: Case) -> tuple[str, int, float, float] | None:
    """Return where the losses of two fp32 builds from one seed first differ.

    Returns:
        The loss's key, the step from 0, and the two losses; None if they agree within 0.01% up to
        the nudge.
    """
    first, again = case.seen.fp32.losses, case.seen.floor
    for step in range(again.before_nudge):
        for key in first:
            a, b = first[key][step], again.losses[key][step]
            if math.isfinite(a) and not abs(a - b) <= REPEATS_WITHIN * abs(a) + 1e-6:
                return key, step, a, b
    return None


class Values(NamedTuple):
    """Digests of some tensors, and a sample of each."""

    digests: tuple[str, ...] | None
    samples: tuple[tuple[float, ...], ...]

    def differ(self, others: Values, rounding: float) -> bool:
        """Return whether the values differ by more than the share `rounding`.

        A difference in dtype alone is not a difference in value.
        """
        ours, theirs = self.digests, others.digests
        if ours is None or theirs is None:
            return False
        if len(ours) != len(theirs):
            return True
        return any(
            a != b
            and a.partition(":")[0] == b.partition(":")[0]
            and not self._only_rounded(others, index, rounding)
            for index, (a, b) in enumerate(zip(ours, theirs, strict=True))
        )

    def _only_rounded(self, others: Values, index: int, rounding: float) -> bool:
        if not index < len(self.samples) == len(others.samples):
            return False
        a, b = self.samples[index], others.samples[index]
        return len(a) == len(b) > 0 and math.dist(a, b) <= rounding * a[0]


def _weights(start: Start) -> Values:
    return Values(start.parameters, start.parameter_samples)


def _inputs(start: Start) -> Values:
    return Values(start.inputs, start.input_samples)


@rule("AMP002")
def not_reproducible(case: Case) -> Iterator[Word]:
    """Look for two fp32 runs from one seed whose losses differ by more than 0.01%.

    The rule is silent if AMP003 has found an error in how the arms start, which explains it.
    """
    differing = first_losses_differ(case)
    if differing is None or any(word.severity != "warning" for word in differing_starts(case)):
        return
    key, step, first, second = differing
    yield Word(
        f"two fp32 runs from one seed differ at step {step + 1} ({first:.6g} and {second:.6g}): "
        "something draws from an unseeded generator or a nondeterministic kernel is at work; "
        "make it reproducible before trusting small differences",
        {"key": key, "step": step + 1, "losses": [first, second]},
    )


@rule("AMP003")
def arms_start_differ(case: Case) -> Iterator[Word]:
    """Look for arms that start from different weights, inputs or a shared optimizer."""
    return differing_starts(case)


def differing_starts(case: Case) -> Iterator[Word]:
    """Say in which way the arms start differently; other rules are silent where they do.

    Two fp32 builds are compared first, so that a difference between them is not blamed on AMP. If
    there are no inputs to compare, the first losses are compared.
    """
    fp32, amp, again = case.seen.fp32.start, case.seen.amp.start, case.seen.floor.start
    fix = (
        "seed what you draw from, and make models and loaders inside setup(arm), so that both "
        "arms start alike"
    )
    if fp32.shared or amp.shared or again.shared:
        yield Word(
            "an optimizer was made outside setup(arm), so every arm goes on training the same "
            f"weights: nothing below is comparable; {fix}",
            {"what": "optimizer"},
            location=case.seen.amp.stepped_at(0),
        )
        return
    for what, values, rounding in (
        ("weights", _weights, MOVED_AND_BACK),
        ("first inputs", _inputs, ROUNDED),
    ):
        first, other, second = values(fp32), values(amp), values(again)
        line = (
            amp.inputs_made_at or amp.inputs_at if what == "first inputs" else _optimizer_made(case)
        )
        if first.differ(second, MOVED_AND_BACK):
            yield Word(
                f"two fp32 builds from one seed start from different {what}: nothing below is "
                f"comparable; {fix}",
                {"what": what, "between": "fp32 and fp32"},
                location=line,
            )
            return
        if first.differ(other, rounding):
            if what == "first inputs" and draws_differ(case.seen.fp32, case.seen.amp):
                yield Word(
                    "the arms drew different random numbers: from one seed this device draws "
                    f"other numbers in {case.seen.dtype} than in float32; draw in float32, outside "
                    "the autocast region, to compare like with like",
                    {"what": "random draws"},
                    severity="warning",
                    location=_first_other_draw(case),
                )
                return
            made = "" if what == "weights" else "; data made in the amp dtype is different data"
            yield Word(
                f"the two arms start from different {what}: nothing below is comparable; "
                f"{fix}{made}",
                {"what": what, "between": "fp32 and amp"},
                location=line,
            )
            return
    differing = first_losses_differ(case)
    if fp32.inputs is None and differing is not None and differing[1] == 0:
        _, _, a, b = differing
        yield Word(
            f"two fp32 builds from one seed have different first losses ({a:.6g} and {b:.6g}): "
            f"nothing below is comparable; {fix}",
            {"what": "first losses", "losses": [a, b]},
            no_place="no module was called on data, whose line could be told",
        )


def _optimizer_made(case: Case) -> str | None:
    """Return the line that makes the amp arm's first optimizer, near which its weights are."""
    used = case.seen.amp.optimizers
    return used[0].made_at or used[0].location if used else None


def _first_other_draw(case: Case) -> str | None:
    """Return the line of the first random draw in which the arms differ."""
    fp32, amp = case.seen.fp32.operators, case.seen.amp.operators
    if fp32 is None or amp is None:
        return None
    draws = zip(fp32.draws or (), amp.draws or (), amp.draws_at, strict=False)
    return next((line for ours, theirs, line in draws if ours != theirs), None)


@rule("AMP004")
def fp32_arm_not_fp32(case: Case) -> Iterator[Word]:
    """Look for a baseline that does not compute as its recipe has it.

    In the fp32 arm these are FLOPs in reduced precision, or a switch that lets them run in TF32.

    It is a warning if the weights are kept that way, since that may well be the model's design.
    """
    operators, recipe = case.seen.fp32.operators, case.seen.recipes.fp32
    yield from unprepared(case.seen.fp32, recipe, "the fp32 arm")
    if _is_loose(case):
        loose = _loose(case.seen.fp32.flags)
        listed = ", ".join(f"{name}={value}" for name, value in loose.items())
        yield Word(
            f"the baseline is to run in {recipe} and switches a lower precision on ({listed}): "
            "leave that out, or compare with it, as in --amp-reference=tf32",
            {"flags": loose},
            severity="warning" if _loose(case.seen.amp.flags) == loose else None,
            no_place="it is about a setting of the process",
        )
    if operators is None:
        return
    if recipe.dtype in REDUCED:
        yield from _not_as_reduced(operators, recipe)
        return
    if not operators.reduced_flops():
        return
    share = operators.reduced_flops() / operators.flops
    by_weights = operators.reduced_weights and not operators.autocast_entered
    dtypes = ", ".join(dtype for dtype in REDUCED if operators.flops_by_dtype.get(dtype))
    evidence = {
        "share": share,
        "flops_by_dtype": dict(operators.flops_by_dtype),
        "autocast_entered": operators.autocast_entered,
    }
    if by_weights:
        yield Word(
            f"{units.share(share)} of the baseline's FLOPs ran in {dtypes}, because weights are "
            "kept in it: the speedup is over that, not over a float32 model",
            evidence,
            severity="warning",
            location=where_it_ran(operators, REDUCED),
        )
    else:
        yield Word(
            f"{units.share(share)} of the fp32 arm's FLOPs ran in {dtypes}: a hard-coded autocast "
            "or cast spoils the baseline; enter arm.autocast() in its place",
            evidence,
            location=where_it_ran(operators, REDUCED),
        )


def _is_loose(case: Case) -> bool:
    """Return whether the baseline multiplies in less than the float32 that it is to run in.

    Where nobody named its recipe, that is no matter if both arms do so.
    """
    loose = _loose(case.seen.fp32.flags)
    shared = _loose(case.seen.amp.flags) == loose and not case.limits.reference_is_chosen
    return case.seen.recipes.fp32.matmul == "float32" and bool(loose) and not shared


def _loose(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags by which float32 operands are multiplied in less than float32."""
    wide = ("none", "ieee")
    tight = {
        "float32_matmul_precision": ("highest",),
        "cuda.matmul.allow_tf32": (False,),
        "cuda.matmul.fp32_precision": wide,
        "mkldnn.matmul.fp32_precision": wide,
        "cudnn.allow_tf32": (False,),
        "cudnn.conv.fp32_precision": wide,
    }
    return {name: flags[name] for name in tight if name in flags and flags[name] not in tight[name]}


def _not_as_reduced(operators: Operators, recipe: Recipe) -> Iterator[Word]:
    """Say that a baseline in a reduced dtype ran in another one."""
    amounts = operators.flops_by_dtype if operators.flops else operators.bytes_by_dtype
    if operators.hidden_reduced or not amounts or amounts.get(recipe.dtype):
        return
    ran = max(amounts, key=amounts.__getitem__)
    yield Word(
        f"the baseline is to run in {recipe} and ran in {ran}: run its forward pass under "
        "arm.autocast(), and train what arm.prepare(model) returns",
        {"asked": recipe.dtype, "ran": ran, "flops_by_dtype": dict(operators.flops_by_dtype)},
        location=where_it_ran(operators, (ran,)),
    )


@rule("AMP005")
def baseline_flags(case: Case) -> Iterator[Word]:
    """Look for global flags that differ between the arms."""
    fp32, amp = case.seen.fp32.flags, case.seen.amp.flags
    differing = {name: [fp32[name], amp.get(name)] for name in fp32 if amp.get(name) != fp32[name]}
    recipes = case.seen.recipes
    if recipes.fp32.matmul != recipes.amp.matmul or _is_loose(case):  # that is known already
        differing = {name: each for name, each in differing.items() if not _is_of_matmul(name)}
    if differing:
        listed = ", ".join(f"{name}: {a} and {b}" for name, (a, b) in differing.items())
        yield Word(
            f"the fp32 and the amp arm ran under different flags ({listed}): the speedup is not "
            "autocast's alone",
            differing,
        )


def _is_of_matmul(name: str) -> bool:
    return name.endswith(("allow_tf32", "fp32_precision", "matmul_precision"))


@rule("AMP005", Compared)
def baseline_flags_differ(compared: Compared) -> Iterator[Word]:
    """Look for global flags that differ between this run and its baseline."""
    differing = other_flags(compared.before, compared.now)
    if differing:
        listed = ", ".join(f"{name}: {old}, now {new}" for name, (old, new) in differing.items())
        yield Word(
            units.printable(
                f"the baseline ran under other flags ({listed}): what changed is not the step's "
                "doing alone"
            ),
            {"baseline": differing},
        )


@rule("AMP001", NeverCalled)
def nothing_measured(_: NeverCalled) -> Iterator[Word]:
    """Report a test that requested amp_benchmark and never called it."""
    yield Word(
        "the test requested amp_benchmark and never called it: a gate that measured nothing is "
        "not green; call amp_benchmark(setup)",
        {},
    )


def serial(ratios: Sequence[float]) -> float | None:
    """Return the pairs' autocorrelation if it is beyond what fair pairs show, else None."""
    found = sequential.autocorrelation(ratios)
    beyond = found > SERIAL and found > SERIAL_SPREADS / math.sqrt(len(ratios))
    return found if beyond else None


@rule("AMP006")
def noisy_machine(case: Case) -> Iterator[Word]:
    """Look for what the machine did to the timed blocks, if that is what keeps the gate open.

    Pairs that follow each other are told whatever the verdict is. What other work took, and an
    interval wider than 5% to either side, matter only if the speed gate failed or is undecided.
    """
    timing, gate = case.seen.timing, case.gates["speedup"]
    if timing is None or not timing.ratios:
        return
    following = serial(timing.ratios)
    if following is not None:
        lasting = modes.found(timing)
        yield Word(
            f"the pairs follow each other (autocorrelation {following:.2f}), so that "
            f"{len(timing.ratios)} say no more than {modes.as_good_as(timing.ratios)}: {lasting}; "
            f"{modes.remedy(timing)}",
            {
                "autocorrelation": following,
                "pairs": len(timing.ratios),
                "independent": modes.as_good_as(timing.ratios),
                "arm": lasting.arm,
                "levels_s": lasting.levels_s,
                "lasts_pairs": lasting.pairs,
                "lasts_s": lasting.lasts_s,
            },
        )
    if gate.verdict not in ("inconclusive", "fail"):
        return
    found = contention.of(timing)
    if cause := contention.cause(found):
        facts = [*filter(None, [contention.preempted(found)]), cause]
        yield Word("; ".join(facts), {"contention": asdict(found)} if found else {})
    elif gate.low and gate.high and gate.value and following is None:
        half = (gate.high - gate.low) / 2 / gate.value
        if half > WIDE:
            yield Word(
                f"the pairs spread so widely (the interval is {units.share(half)} to either side) "
                "that the figure is the machine's as much as the step's: stop other work on it, "
                "lock its clocks, or raise max_time",
                {"half_width": half, "pairs": len(timing.ratios)},
            )
