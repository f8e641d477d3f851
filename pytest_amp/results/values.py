"""The parts of a report, as frozen values that the whole plugin shares.

Nothing here imports torch or pytest. Every value can be written as plain JSON
(`AmpReport.to_dict`, schema 1) and read back (`AmpReport.from_dict`). Units are in the names.
Raw samples are stored; what follows from them is a property, so the two can't disagree.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from pytest_amp import units

GateVerdict = Literal["pass", "fail", "inconclusive", "not_gated"]
Verdict = Literal["pass", "fail", "inconclusive", "skipped", "error"]
Severity = Literal["error", "warning"]
# The words that people read for a gate's verdict.
NO_ANSWER = "no answer"
_GATE_WORDS: Mapping[GateVerdict, str] = {
    "pass": "ok", "fail": "FAILED", "inconclusive": NO_ANSWER, "not_gated": "not gated",
}  # fmt: skip
# The phases that an experiment's time is accounted to.
PHASES = ("parity", "inspection", "timing", "training")
COMPARED = ("compare:speedup", "compare:memory", "compare:loss")


def tail_start(steps: int) -> int:
    """Return the index of the first loss that is compared: the last quarter is, or at least one."""
    return steps - max(1, steps // 4)


@dataclass(frozen=True)
class ArmRun:
    """What one arm did.

    Attributes:
        step_times_s (tuple[float, ...]): seconds per step, one value per timed block.
        losses_by_key (Mapping[str, tuple[float, ...]]): the value of each loss after each step of
            the parity run, by the loss's name.
        peak_bytes (int | None): the peak of the memory in use, above its level before the arm was
            built; None if it is unknown.
        reserved_bytes (int | None): the same for the memory that the allocator reserved.
        flops_by_dtype (Mapping[str, int]): the FLOPs of one inspected step.
        scales (tuple[float, ...]): the GradScaler's scale after each of its updates.
        skipped_steps (int): how many optimizer steps the GradScaler skipped.
        held_bytes (Mapping[str, int]): the memory that was held when the arm ended, by kind:
            parameters, gradients, optimizer state.
        operators (Mapping[str, Mapping[str, int]]): the calls in the inspected step, by operator
            and dtype.
        recipe (str | None): the name of the recipe by which the arm computed; None in a report that
            is older than recipes.
        model (str | None): the name of its model, if two models are compared under one recipe.
        parameters (int | None): how many numbers its optimizers train; None if it is not known.
    """

    step_times_s: tuple[float, ...] = ()
    losses_by_key: Mapping[str, tuple[float, ...]] = field(
        default_factory=dict, metadata={"json": "losses"}
    )
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    flops_by_dtype: Mapping[str, int] = field(default_factory=dict)
    scales: tuple[float, ...] = ()
    skipped_steps: int = 0
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    operators: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    recipe: str | None = None
    model: str | None = None
    parameters: int | None = None

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss after each step; if there are several losses, that of the first key."""
        return next(iter(self.losses_by_key.values()), ())

    @property
    def tail_loss(self) -> float | None:
        """The mean of the last quarter of the losses; None if that is not finite."""
        tail = self.losses[tail_start(len(self.losses)) :] if self.losses else ()
        mean = statistics.fmean(tail) if tail else math.nan
        return mean if math.isfinite(mean) else None

    @property
    def step_time_s(self) -> float | None:
        """The median of the seconds per step; None if nothing was timed."""
        return statistics.median(self.step_times_s) if self.step_times_s else None


def arm_names(arms: Mapping[str, ArmRun]) -> dict[str, str]:
    """Return what to call each arm: by its recipe, unless that is float32 or plain autocast.

    If two models are compared, they are called by their names.
    """
    models = {name: arm.model for name, arm in arms.items() if arm.model is not None}
    if len(models) == 2:
        return models
    found = {name: arms[name].recipe if name in arms else None for name in ("fp32", "amp")}
    usual = found["fp32"] in (None, "fp32") and found["amp"] in (None, "fp16", "bf16")
    return {name: name if usual or recipe is None else recipe for name, recipe in found.items()}


def against(arms: Mapping[str, ArmRun], dtype: str) -> str:
    """Return what was compared with what, such as ``bfloat16 against float32``.

    Args:
        arms: the arms.
        dtype: the dtype of the amp arm, which names it where it is plain autocast.
    """
    names = arm_names(arms)
    if names == {"fp32": "fp32", "amp": "amp"}:
        return f"{dtype} against float32"
    return f"{names['amp']} against {names['fp32']}"


@dataclass(frozen=True)
class Estimate:
    """The speedup: fp32 step time / amp step time, measured pair by pair.

    Attributes:
        pair_ratios (tuple[float, ...]): the ratio of each pair of blocks, in the order of timing.
        low (float | None): a lower bound of the median ratio. The probability that it is wrong is
            at most the setting `error_rate`, at whatever moment timing stopped. None if there were
            too few pairs.
        high (float | None): an upper bound, with the same guarantee.
        block_steps (int): how many steps a timed block has.
    """

    pair_ratios: tuple[float, ...]
    low: float | None
    high: float | None
    block_steps: int

    summaries: ClassVar = ("value", "pairs")

    def __post_init__(self) -> None:
        if not self.pair_ratios:
            raise ValueError("a speedup needs at least one pair of blocks")

    @property
    def value(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.pair_ratios)

    @property
    def pairs(self) -> int:
        """How many pairs of blocks were timed."""
        return len(self.pair_ratios)

    def __str__(self) -> str:
        return units.estimate(self.value, self.low, self.high)


@dataclass(frozen=True)
class Gate:
    """A figure, the threshold that it is compared with, and the verdict.

    Attributes:
        name (str): the gate's name, such as "speedup" or "compare:memory".
        threshold (float | None): the threshold in force on this device; None if there is none.
        value (float | None): the measured figure; None if it is unknown.
        low (float | None): the lower bound of the figure's interval, if it has one.
        high (float | None): the upper bound.
        verdict (str): "pass", "fail", "inconclusive" or "not_gated".
        reason (str): a sentence that says why the verdict is what it is.
        only_for (tuple[str, ...]): the devices that the threshold names, if the test ran on none
            of them; otherwise empty.
    """

    name: str
    threshold: float | None
    value: float | None
    low: float | None
    high: float | None
    verdict: GateVerdict
    reason: str
    only_for: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """The verdict in a word or two, nine characters at most."""
        if not self.unmeasured:
            return _GATE_WORDS[self.verdict]
        return "not asked" if self.only_for else NO_ANSWER

    @property
    def asked(self) -> bool:
        """Whether a figure was compared with a threshold."""
        return self.verdict != "not_gated"

    @property
    def unmeasured(self) -> bool:
        """Whether a threshold was set, but there was no figure, or it is for other devices."""
        return not self.asked and (
            bool(self.only_for) or (self.threshold is not None and self.value is None)
        )


@dataclass(frozen=True)
class Finding:
    """What a rule found in a step.

    Attributes:
        code (str): the rule's code, such as "AMP402".
        name (str): the rule's name, such as "fp32-fallback".
        severity (str): "error" fails the test; "warning" does not.
        message (str): what was found, and what to do about it.
        module (str | None): the path of the module that it is about.
        location (str | None): the file and line of the user's code.
        no_location (str | None): why there is no such line, if there is none.
        evidence (Mapping[str, Any]): the figures that the finding is based on.
        confirmed (bool): whether a rerun showed that it is the cause of a failed gate.
        suppressed (str | None): the reason that the setting `ignore` gives; None if the finding
            is not suppressed.
    """

    code: str
    name: str
    severity: Severity
    message: str
    module: str | None = None
    location: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    confirmed: bool = False
    suppressed: str | None = None
    no_location: str | None = None

    @property
    def stands(self) -> bool:
        """Whether it counts against the verdict."""
        return self.severity == "error" and self.suppressed is None

    @property
    def title(self) -> str:
        """The finding in short: ``AMP402 fp32-fallback in decoder.head (net.py:12)``."""
        module = f" in {self.module}" if self.module else ""
        location = f" ({self.location})" if self.location else ""
        return f"{self.code} {self.name}{module}{location}"

    @property
    def text(self) -> str:
        """The message, and why there is no line to look at, if there is none."""
        return f"{self.message} (no line: {self.no_location})" if self.no_location else self.message

    def __str__(self) -> str:
        return f"{self.title}: {self.text}"


RULES = "autocast_rules"
"""The flag that says that autocast on a CPU followed another device's rules."""


@dataclass(frozen=True)
class Environment:
    """Where a test was measured.

    Attributes:
        device (str): the device's name.
        device_type (str): "cuda", "xpu", "mps" or "cpu".
        torch (str): torch's version.
        cuda (str | None): the version of CUDA or HIP.
        cudnn (str | None): cuDNN's version.
        driver (str | None): the driver's version.
        dtype (str): the dtype of the amp arm.
        native_support (bool): whether the device has a fast path for that dtype.
        flags (Mapping[str, Any]): the global switches that change what is measured, by name;
            ``autocast_rules`` is there if a CPU followed another device's.
        unseen (str | None): what torch was built for, such as "CUDA 13.0", if no such device is
            visible.
    """

    device: str
    device_type: str
    torch: str
    cuda: str | None
    cudnn: str | None
    driver: str | None
    dtype: str
    native_support: bool
    flags: Mapping[str, Any] = field(default_factory=dict)
    unseen: str | None = None


@dataclass(frozen=True)
class Failure:
    """An exception that ended a test before it could be judged.

    Attributes:
        arm: the arm that was running, if any.
        phase: the phase of the experiment, or of pytest.
        step: the number of the step that was running, if any.
        type: the name of the exception's class.
        message: the exception's message.
    """

    arm: str | None
    phase: str | None
    step: int | None
    type: str
    message: str


@dataclass(frozen=True)
class Setting:
    """The value of a setting that was in force, and the source that it came from."""

    value: Any
    source: str = field(metadata={"json": "from"})


@dataclass(frozen=True)
class DtypeMap:
    """Which modules ran which operators in which dtype, as ``--amp-snapshot`` stores it.

    Attributes:
        file: the file that the map is stored in, relative to pytest's root directory.
        test: the test's name in its test file.
        lines: the map, a line for each module, phase, operator and dtype.
        stored: whether there was a stored map to compare with.
        changes: the lines that differ, marked with "-" (stored) or "+" (this run).
    """

    file: str
    test: str
    lines: tuple[str, ...]
    stored: bool
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Baseline:
    """The stored result that ``--amp-compare`` compared this one with.

    Attributes:
        run: the number of its run, or the name of its file.
        file: the file that it was read from.
        started: when the stored test started, as ISO 8601.
        commit: the commit that it was measured at, if known.
        branch: the branch, if known.
        differences: how the two environments differ, a text each.
    """

    run: str
    file: str
    started: str
    commit: str | None = None
    branch: str | None = None
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return ``run 012 of 2026-01-31 (commit 1a2b3c4, main); since then torch 2.9 -> 2.10``"""
        code = [f"commit {self.commit[:7]}"] if self.commit else []
        code += [self.branch] if self.branch else []
        where = f" ({', '.join(code)})" if code else ""
        since = f"; since then {', '.join(self.differences)}" if self.differences else ""
        return f"run {self.run} of {self.started[:10]}{where}{since}"


def suppression(finding: Finding, ignore: Mapping[str, str]) -> str | None:
    """Return the reason why a finding is ignored; None if it is not.

    Args:
        finding: what a rule found.
        ignore: reasons by pattern. A pattern is the beginning of a code, or CODE@GLOB with a glob
            for the module's path.
    """
    for pattern, reason in ignore.items():
        code, _, module = pattern.partition("@")
        if finding.code.startswith(code) and fnmatchcase(finding.module or "", module or "*"):
            return reason
    return None
