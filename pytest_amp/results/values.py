"""What was found, as frozen values: the language that the whole plugin shares.

Nothing here imports torch or pytest. Every value can be written as plain JSON
(`AmpReport.to_dict`, schema 1) and read back (`AmpReport.from_dict`). Units are in the names;
a summary that follows from the raw samples is a property, so that it is stored once.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from pytest_amp import units

GateVerdict = Literal["pass", "fail", "inconclusive", "not_gated"]
Verdict = Literal["pass", "fail", "inconclusive", "skipped", "error"]
Severity = Literal["error", "warning"]
# The words for a gate's verdict, wherever a person reads it.
NO_ANSWER = "no answer"
_GATE_WORDS: Mapping[GateVerdict, str] = {
    "pass": "ok", "fail": "FAILED", "inconclusive": NO_ANSWER, "not_gated": "not gated",
}  # fmt: skip
COMPARED = ("compare:speedup", "compare:memory", "compare:loss")


def tail_start(steps: int) -> int:
    """The index of the first loss that is compared: the last quarter is, at least one."""
    return steps - max(1, steps // 4)


@dataclass(frozen=True)
class ArmRun:
    """What one arm did.

    `step_times_s`: seconds per step, one value per timed block. `losses_by_key`: per name of a
    loss its value after each step. `peak_bytes` and `reserved_bytes`: the allocator's peak above
    its level before the arm was built. `held_bytes`: what was held when it ended, by kind
    (parameters, gradients, optimizer state). `flops_by_dtype`: of one inspected step; `operators`:
    its calls, by name and dtype. `scales`: the GradScaler's scale after each of its updates.
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

    @property
    def losses(self) -> tuple[float, ...]:
        """The sequence of the loss; of the first key, where there are several."""
        return next(iter(self.losses_by_key.values()), ())

    @property
    def step_time_s(self) -> float | None:
        """Median seconds per step, None where nothing was timed."""
        return statistics.median(self.step_times_s) if self.step_times_s else None


@dataclass(frozen=True)
class Estimate:
    """The speedup: fp32 step time / amp step time, pair by pair.

    `low` and `high` bound the median ratio with an error of at most `error_rate` on each side,
    at whatever moment the sampling stopped; None where there were too few pairs to say.
    """

    pair_ratios: tuple[float, ...]
    low: float | None
    high: float | None
    block_steps: int

    def __post_init__(self) -> None:
        if not self.pair_ratios:
            raise ValueError("a speedup needs a pair")

    @property
    def value(self) -> float:
        """The median pair ratio."""
        return statistics.median(self.pair_ratios)

    @property
    def pairs(self) -> int:
        return len(self.pair_ratios)

    def __str__(self) -> str:
        return f"{units.ratio(self.value)} {units.interval(self.low, self.high)}".rstrip()


@dataclass(frozen=True)
class Gate:
    """One promise and whether it was kept. `reason` says in a sentence why the verdict is so.

    `only_for`: the devices that a threshold was set for, where the test ran on none of them.
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
        """Whether a figure was held against a threshold."""
        return self.verdict != "not_gated"

    @property
    def unmeasured(self) -> bool:
        """A threshold was set, and there was no figure to hold against it, or no such device."""
        return not self.asked and (
            bool(self.only_for) or (self.threshold is not None and self.value is None)
        )


@dataclass(frozen=True)
class Finding:
    """One rule's word on one step. `suppressed` is the reason given in ``ignore``, or None."""

    code: str
    name: str
    severity: Severity
    message: str
    module: str | None = None
    location: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    confirmed: bool = False
    suppressed: str | None = None

    @property
    def stands(self) -> bool:
        """Whether it counts against the verdict."""
        return self.severity == "error" and self.suppressed is None

    @property
    def title(self) -> str:
        """``AMP402 fp32-fallback in decoder.head (net.py:12)``"""
        module = f" in {self.module}" if self.module else ""
        location = f" ({self.location})" if self.location else ""
        return f"{self.code} {self.name}{module}{location}"

    def __str__(self) -> str:
        return f"{self.title}: {self.message}"


@dataclass(frozen=True)
class Environment:
    """Where a number was measured. `flags` are the global switches that shift a baseline.

    `unseen`: what torch was built for, as ``CUDA 13.0``, where no such device is visible.
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
    """An exception that ended a test before it could be judged, and where it was raised."""

    arm: str | None
    phase: str | None
    step: int | None
    type: str
    message: str


@dataclass(frozen=True)
class Setting:
    """A setting's value in force and where it came from."""

    value: Any
    source: str = field(metadata={"json": "from"})


@dataclass(frozen=True)
class DtypeMap:
    """Which modules ran which operators in which dtype, as ``--amp-snapshot`` keeps it.

    `file`: where, from pytest's root directory; `test`: whose, by its name in the test file.
    `stored`: whether there was a map to compare with; `changes`: the lines that differ from it.
    """

    file: str
    test: str
    lines: tuple[str, ...]
    stored: bool
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Baseline:
    """The stored result that ``--amp-compare`` held this one against.

    `run`: its number, or its file's name. `differences`: of the two environments, a text each.
    """

    run: str
    file: str
    started: str
    commit: str | None = None
    branch: str | None = None
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``run 0012 of 2026-01-31 (commit 1a2b3c4, main); since then torch 2.12.0 -> 2.13.0``"""
        code = [f"commit {self.commit[:7]}"] if self.commit else []
        code += [self.branch] if self.branch else []
        where = f" ({', '.join(code)})" if code else ""
        since = f"; since then {', '.join(self.differences)}" if self.differences else ""
        return f"run {self.run} of {self.started[:10]}{where}{since}"


def suppression(finding: Finding, ignore: Mapping[str, str]) -> str | None:
    """The reason for which a finding is ignored; patterns are CODE or CODE@module.path.glob."""
    for pattern, reason in ignore.items():
        code, _, module = pattern.partition("@")
        if finding.code.startswith(code) and fnmatchcase(finding.module or "", module or "*"):
            return reason
    return None
