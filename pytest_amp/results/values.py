"""What was found, as frozen values: the language that the whole plugin shares.

Nothing here imports torch or pytest. Every value can be written as plain JSON
(`AmpReport.to_dict`, schema 1) and read back (`AmpReport.from_dict`). Units are in the names;
a summary that follows from the raw samples is a property, so that it is stored once.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_amp import units
from pytest_amp.errors import AmpInconclusive, AmpRegression
from pytest_amp.results.explanation import explanation
from pytest_amp.results.plain import plain, restored
from pytest_amp.results.typed import typed

GateVerdict = Literal["pass", "fail", "inconclusive", "not_gated"]
Verdict = Literal["pass", "fail", "inconclusive", "skipped", "error"]
Severity = Literal["error", "warning"]
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


@dataclass(frozen=True)
class AmpReport:
    """One test's experiment, judged. The value of ``amp_benchmark(setup)``.

    Times are seconds, sizes bytes, shares fractions. `loss_diff` and `noise_floor` are relative
    to the fp32 loss; `coverage` is the share of matmul, convolution and attention FLOPs that ran
    in the amp dtype, None where it is unknown or there were none.
    """

    nodeid: str
    verdict: Verdict
    started: str
    duration_s: float = 0.0
    attempt: int = 1
    worker: str | None = None
    rank: int | None = None
    skip_reason: str | None = None
    error: Failure | None = None
    environment: Environment | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    arms: Mapping[str, ArmRun] = field(default_factory=dict)
    speedup: Estimate | None = None
    loss_diff: float | None = None
    noise_floor: float | None = None
    coverage: float | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    phases_s: Mapping[str, float] = field(default_factory=dict)
    dtype_map: DtypeMap | None = None
    baseline: Baseline | None = None

    @property
    def fp32(self) -> ArmRun:
        return self.arms["fp32"]

    @property
    def amp(self) -> ArmRun:
        return self.arms["amp"]

    @property
    def memory_reduction(self) -> float | None:
        """1 - amp peak / fp32 peak; None where a peak is unknown or fp32's is zero."""
        fp32, amp = self.arms.get("fp32"), self.arms.get("amp")
        if fp32 is None or amp is None or not fp32.peak_bytes or amp.peak_bytes is None:
            return None
        return 1 - amp.peak_bytes / fp32.peak_bytes

    def gate(self, name: str) -> Gate:
        """The gate of that name; KeyError where there is none."""
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise KeyError(f"no gate {name!r}; this report has {[gate.name for gate in self.gates]}")

    @property
    def strict(self) -> frozenset[str]:
        """The kinds of missing answers that ``--amp-strict`` turns into failures."""
        setting = self.settings.get("strict")
        kinds = setting.value if setting else ()
        return frozenset(map(str, kinds)) if isinstance(kinds, Collection) else frozenset()

    @property
    def unanswered(self) -> tuple[Gate, ...]:
        """Gates without an answer that are failures under the strictness in force."""
        return tuple(
            gate
            for gate in self.gates
            if (gate.verdict == "inconclusive" and "inconclusive" in self.strict)
            or ("baseline" in self.strict and gate.name in COMPARED and self.baseline is None)
            or (gate in self.unmeasured and "unmeasured" in self.strict)
        )

    @property
    def unmeasured(self) -> tuple[Gate, ...]:
        """Gates that were set and had no figure, or no such device, to be asked of."""
        return tuple(
            gate for gate in self.gates if gate.unmeasured and gate.name not in self.left_out
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """The gates that were set, and that a static run leaves out, since it is asked for by name.

        Those of the speed, and those for devices that it does not run on.
        """
        if not self.static:
            return ()
        setting = self.settings.get("min_speedup")
        speed = ["speedup"] if setting is not None and setting.value is not None else []
        compared = [
            gate.name
            for gate in self.gates
            if gate.name == "compare:speedup" and gate.threshold is not None
        ]
        others = [gate.name for gate in self.gates if gate.only_for]
        return tuple(dict.fromkeys([*speed, *others, *compared]))

    @property
    def static(self) -> bool:
        """Whether nothing was to be timed."""
        setting = self.settings.get("static")
        return setting is not None and setting.value is True

    def check(self) -> None:
        """Assert the gates.

        Raises `AmpRegression` where a gate failed or an error stands, `AmpInconclusive` where
        ``--amp-strict`` asks for an answer that is missing.
        """
        __tracebackhide__ = True
        object.__setattr__(self, "_checked", True)  # all that happens to a report once it is made
        if self.verdict == "fail":
            raise AmpRegression(self)
        if self.unanswered:
            raise AmpInconclusive(self)

    @property
    def checked(self) -> bool:
        """Whether `check` was called."""
        return bool(getattr(self, "_checked", False))

    def explain(self) -> str:
        """The verdict for a CI log: every gate, on what evidence, and what to look at."""
        return "\n".join(explanation(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, schema 1. What is not finite becomes None and is named in `nonfinite`."""
        data = dataclasses.asdict(self)
        data["settings"] = {
            name: {"value": setting.value, "from": setting.source}
            for name, setting in self.settings.items()
        }
        for arm in data["arms"].values():
            arm["losses"] = arm.pop("losses_by_key")
        if self.speedup is not None:
            data["speedup"].update(value=self.speedup.value, pairs=self.speedup.pairs)
        data["memory_reduction"] = self.memory_reduction
        data["phases_s"] = {
            phase: self.phases_s.get(phase, 0.0) for phase in ("parity", "inspection", "timing")
        }
        nonfinite: list[str] = []
        written: dict[str, Any] = plain(data, "", nonfinite)
        written["nonfinite"] = nonfinite
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AmpReport:
        """Read what `to_dict` wrote; what was not finite comes back as NaN.

        Raises TypeError or ValueError, with the place, for what is no report.
        """
        missing = [key for key in ("settings", "gates", "arms", "findings") if key not in data]
        if missing:
            raise TypeError(f"{' and '.join(missing)} is missing")
        report: AmpReport = typed(cls, restored(data, "", frozenset(data.get("nonfinite", ()))))
        return report
