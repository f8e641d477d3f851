"""What one test measured: the report that everything else is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_amp.errors import SaidInFull
from pytest_amp.results.explanation import explanation
from pytest_amp.results.plain import plain, restored
from pytest_amp.results.typed import typed
from pytest_amp.results.values import (
    COMPARED,
    ArmRun,
    Baseline,
    DtypeMap,
    Environment,
    Estimate,
    Failure,
    Finding,
    Gate,
    Setting,
    Verdict,
)


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

    def setting(self, name: str, kind: type[Any] | tuple[type[Any], ...], default: Any) -> Any:
        """Return the value of a setting that was in force; a stored report may hold anything there.

        Args:
            name: the setting's name.
            kind: the types that its value may have.
            default: what stands for a value that is missing or of another type.
        """
        value = self.settings[name].value if name in self.settings else default
        return value if isinstance(value, kind) else default

    @property
    def strict(self) -> frozenset[str]:
        """The kinds of missing answers that ``--amp-strict`` turns into failures."""
        return frozenset(map(str, self.setting("strict", Collection, ())))

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
        speed = [] if self.setting("min_speedup", object, None) is None else ["speedup"]
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
        return bool(self.setting("static", bool, False))

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


class AmpRegression(SaidInFull, AssertionError):
    """Mixed precision missed a gate, or a finding of severity error stands.

    `report` is the `AmpReport` with everything that was measured.
    """

    __module__ = "pytest_amp"

    def __init__(self, report: AmpReport) -> None:
        super().__init__(report.explain())
        self.report = report


class AmpInconclusive(SaidInFull, AssertionError):
    """Under ``--amp-strict``: a gate had no answer within its budget, or could not be measured.

    Not a regression: measuring again may well decide, so a rerun plugin can retry this
    exception and only it. `report` is the `AmpReport`.
    """

    __module__ = "pytest_amp"

    def __init__(self, report: AmpReport) -> None:
        super().__init__(report.explain())
        self.report = report
