"""Find what a whole run was told to gate but did not: that must not look like a pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from pytest_amp.codes import GATES
from pytest_amp.results.report import AmpReport


def unasked(
    reports: Sequence[AmpReport], given: Mapping[str, str], *, static: bool = False
) -> Iterator[str]:
    """Yield a sentence for each thing that the run was told to gate and did not.

    It yields nothing if a test raised an error, since that is reported by itself.

    Args:
        reports: the run's reports.
        given: the options on the command line that set a gate, by the gate's name.
        static: whether the command line also has ``--amp-static``, which leaves gates out by name.
    """
    if not reports:
        options = f": {_listed(given.values())} had no test to hold" if given else ""
        yield (
            f"no amp test ran{options}; see that the paths, -m and -k select the tests that are "
            "marked amp"
        )
        return
    if any(report.verdict == "error" for report in reports):
        return
    measured = [report for report in reports if report.verdict != "skipped"]
    if not measured:
        reasons = dict.fromkeys(report.skip_reason or "without a reason" for report in reports)
        yield f"{_all(reports, 'was', 'were')} skipped ({'; '.join(reasons)})"
        return
    asked = {gate.name for report in measured for gate in report.gates if gate.asked}
    left_out = {name for report in measured for name in report.left_out} if static else set()
    missed = {gate: given[gate] for gate in given if gate not in asked | left_out}
    for gate, option in missed.items():
        yield f"{option} was asked of no test{_because(gate, measured)}"
    if not asked and not missed and not static:
        yield f"{_all(measured, 'has', 'have')} no threshold in force, so no gate was asked"


def _listed(words: Collection[str]) -> str:
    return " and ".join(dict.fromkeys(words))


def _all(reports: Sequence[AmpReport], one: str, many: str) -> str:
    tests = len({report.nodeid for report in reports})
    return f"the one amp test {one}" if tests == 1 else f"all {tests} amp tests {many}"


def _because(name: str, reports: Sequence[AmpReport]) -> str:
    """Say why the gate was not asked, as far as the tests' own gates tell."""
    setting = next((setting for setting, gate in GATES.items() if gate == name), "")
    own = any(
        report.settings[setting].source == "marker"
        for report in reports
        if setting in report.settings
    )
    gates = [gate for report in reports for gate in report.gates if gate.name == name]
    elsewhere = dict.fromkeys(key for gate in gates for key in gate.only_for)
    if elsewhere:
        whose = "their markers gate it" if own else "it is gated"
        return f": {whose} on {_listed(elsewhere)} only, and none of them ran there"
    if any(name in report.left_out for report in reports):
        return ": the run is static by its ini file, and times nothing"
    unknown = [gate for gate in gates if gate.threshold is not None]
    if unknown:
        return f": {unknown[0].reason}"
    if setting in ("max_val_loss_diff", "max_accuracy_diff"):
        return ": none of them calls amp_benchmark.train"
    return ": their markers unset it" if own else ""
