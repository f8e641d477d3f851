"""A test's report, which holds all that was measured, and the exceptions that carry it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pytest_amp.errors import SaidInFull
from pytest_amp.results.anchor import Anchor
from pytest_amp.results.contention import Contention
from pytest_amp.results.explanation import explanation
from pytest_amp.results.forecast import Forecast
from pytest_amp.results.plain import plain, restored
from pytest_amp.results.processes import ProcessRun
from pytest_amp.results.seeds import SeedTails
from pytest_amp.results.training import Epoch
from pytest_amp.results.typed import typed
from pytest_amp.results.values import (
    COMPARED,
    PHASES,
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
    """What one test measured, and how it was judged; ``amp_benchmark(setup)`` returns it.

    Attributes:
        nodeid (str): the test, as pytest names it.
        verdict (str): "pass", "fail", "inconclusive", "skipped" or "error".
        started (str): when the test started, as ISO 8601 with the zone.
        duration_s (float): how long the experiment took, in seconds.
        attempt (int): 1, or more if a rerun plugin ran the test again.
        worker (str | None): the xdist worker that ran the test.
        rank (int | None): the process's rank under torch.distributed.
        skip_reason (str | None): why the test was skipped.
        error (Failure | None): the exception that ended the test before it could be judged.
        environment (Environment | None): where it was measured.
        settings (Mapping[str, Setting]): the settings in force, by name.
        gates (tuple[Gate, ...]): every gate, those without a threshold included.
        arms (Mapping[str, ArmRun]): what each arm did, by its name: "fp32" and "amp". Empty if the
            arms did not run.
        speedup (Estimate | None): fp32 step time / amp step time; None if nothing was timed.
        loss_diff (float | None): the difference between the tails of the two loss curves, relative
            to the fp32 loss (0.02 is 2%).
        noise_floor (float | None): how far the fp32 loss drifts from itself under rounding,
            relative to itself.
        coverage (float | None): the share of matmul, convolution and attention FLOPs that ran in
            the amp dtype; None if it is unknown or there were none.
        findings (tuple[Finding, ...]): what the rules found, suppressed findings included.
        notes (tuple[str, ...]): what else there is to know, a sentence each.
        phases_s (Mapping[str, float]): the seconds that each phase took.
        dtype_map (DtypeMap | None): the dtype map under ``--amp-snapshot``.
        baseline (Baseline | None): the stored result that this one was compared with.
        training (Mapping[str, tuple[Epoch, ...]]): the epochs of a whole training, by the arm's
            name; empty unless one was run.
        attainable (Forecast | None): the speedups that this device could show; its upper end is the
            attainable speedup. None if nothing was timed.
        forecasts (tuple[Forecast, ...]): the speedups that ``--amp-forecast`` foresees elsewhere.
        processes (tuple[ProcessRun, ...]): what each process measured of the speedup, this one
            first; empty unless others were asked.
        contention (Contention | None): what other work took of the machine while the test was
            timed; None if nothing was timed.
        anchor (tuple[Anchor, ...]): both arms' errors against float64, by loss; empty where that
            was not asked, or could not be had.
        seeds (tuple[SeedTails, ...]): where both loss curves ended with each seed; empty with one.
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
    phases_s: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    dtype_map: DtypeMap | None = None
    baseline: Baseline | None = None
    training: Mapping[str, tuple[Epoch, ...]] = field(default_factory=dict)
    attainable: Forecast | None = None
    forecasts: tuple[Forecast, ...] = ()
    contention: Contention | None = None
    processes: tuple[ProcessRun, ...] = ()
    anchor: tuple[Anchor, ...] = ()
    seeds: tuple[SeedTails, ...] = ()

    summaries: ClassVar = ("memory_reduction",)

    @property
    def fp32(self) -> ArmRun:
        """The fp32 arm; a KeyError if it never ran."""
        return self.arms["fp32"]

    @property
    def amp(self) -> ArmRun:
        """The amp arm; a KeyError if it never ran."""
        return self.arms["amp"]

    @property
    def reference(self) -> ArmRun:
        """The arm that the other is compared with, by its role: the same as `fp32`."""
        return self.fp32

    @property
    def candidate(self) -> ArmRun:
        """The arm that is measured, by its role: the same as `amp`."""
        return self.amp

    @property
    def memory_reduction(self) -> float | None:
        """1 - amp peak / fp32 peak; None if a peak is unknown, or fp32's is zero."""
        fp32, amp = self.arms.get("fp32"), self.arms.get("amp")
        if fp32 is None or amp is None or not fp32.peak_bytes or amp.peak_bytes is None:
            return None
        return 1 - amp.peak_bytes / fp32.peak_bytes

    def gate(self, name: str) -> Gate:
        """Return the gate of that name.

        Raises:
            KeyError: there is none; the message lists the gates that there are.
        """
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise KeyError(f"no gate {name!r}; this report has {[gate.name for gate in self.gates]}")

    def setting(self, name: str, kind: type[Any] | tuple[type[Any], ...], default: Any) -> Any:
        """Return the value of a setting that was in force.

        A stored report may lack the setting, or hold a value of any type.

        Args:
            name: the setting's name.
            kind: the types that its value may have.
            default: what to return if the value is missing or of another type.
        """
        value = self.settings[name].value if name in self.settings else default
        return value if isinstance(value, kind) else default

    @property
    def strict(self) -> frozenset[str]:
        """The kinds of missing answers that ``--amp-strict`` turns into failures."""
        return frozenset(map(str, self.setting("strict", Collection, ())))

    @property
    def unanswered(self) -> tuple[Gate, ...]:
        """The gates without an answer that ``--amp-strict``, as it was set, counts as failures."""
        return tuple(
            gate
            for gate in self.gates
            if (gate.verdict == "inconclusive" and "inconclusive" in self.strict)
            or ("baseline" in self.strict and gate.name in COMPARED and self.baseline is None)
            or (gate in self.unmeasured and "unmeasured" in self.strict)
        )

    @property
    def asked(self) -> tuple[Gate, ...]:
        """The gates that somebody asked: those that were judged, and those that are unmeasured."""
        return tuple(gate for gate in self.gates if gate.asked or gate in self.unmeasured)

    @property
    def unmeasured(self) -> tuple[Gate, ...]:
        """The gates that have a threshold, but no figure, or a threshold for other devices only.

        Those that a static run leaves out on purpose are not among them.
        """
        return tuple(
            gate for gate in self.gates if gate.unmeasured and gate.name not in self.left_out
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """The names of the gates that have a threshold, but are left out of a static run.

        These are the gates of the speed, and those for devices that the run is not on. Whoever asks
        for ``--amp-static`` knows that, so their missing answers are not failures.
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
        """Whether the run was static, so that nothing was to be timed."""
        return bool(self.setting("static", bool, False))

    def check(self) -> None:
        """Assert the gates.

        Raises:
            AmpRegression: a gate failed, or a finding of severity error is not suppressed.
            AmpInconclusive: ``--amp-strict`` asks for an answer that is missing.
        """
        __tracebackhide__ = True
        object.__setattr__(self, "_checked", True)  # nothing else in a report ever changes
        if self.verdict == "fail":
            raise AmpRegression(self)
        if self.unanswered:
            raise AmpInconclusive(self)

    @property
    def checked(self) -> bool:
        """Whether `check` was called on this report."""
        return bool(getattr(self, "_checked", False))

    def explain(self) -> str:
        """Return the verdict for a CI log: each gate, its evidence, and what to look at."""
        return "\n".join(explanation(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON, schema 1.

        A number that is not finite becomes None, and its path is listed under "nonfinite".
        """
        nonfinite: list[str] = []
        written: dict[str, Any] = plain(self, "", nonfinite)
        written["nonfinite"] = nonfinite
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AmpReport:
        """Return the report that `to_dict` wrote; what was not finite comes back as NaN.

        Raises:
            TypeError: the data is not a report; the message says what is wrong where.
            ValueError: the speedup has no pairs.
        """
        missing = [key for key in ("settings", "gates", "arms", "findings") if key not in data]
        if missing:
            raise TypeError(f"{' and '.join(missing)} is missing")
        report: AmpReport = typed(cls, restored(data, "", frozenset(data.get("nonfinite", ()))))
        return report


class AmpRegression(SaidInFull, AssertionError):
    """A gate failed, or a finding of severity error is not suppressed.

    Attributes:
        report (AmpReport): everything that was measured.
    """

    __module__ = "pytest_amp"

    def __init__(self, report: AmpReport) -> None:
        super().__init__(report.explain())
        self.report = report


class AmpInconclusive(SaidInFull, AssertionError):
    """Under ``--amp-strict``, a gate had no answer within its budget, or could not be measured.

    This is not a regression. Measuring again may well give an answer, so a rerun plugin can be told
    to retry on this exception, and on no other.

    Attributes:
        report (AmpReport): everything that was measured.
    """

    __module__ = "pytest_amp"

    def __init__(self, report: AmpReport) -> None:
        super().__init__(report.explain())
        self.report = report
