"""The summary at the end of a run: lines of styled text for whoever owns the terminal.

Nothing here writes. A `Line` is a tuple of `Span`s whose `markup` are names that pytest's
TerminalWriter knows; every line is ASCII and no wider than it was asked to be.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pytest_amp import units
from pytest_amp.results import AmpReport, ArmRun, Environment, Finding, Gate

Markup = tuple[str, ...]


class Span(NamedTuple):
    """A piece of a line and the TerminalWriter markup it is written with."""

    text: str
    markup: Markup = ()


Line = tuple[Span, ...]

_PLAIN: Markup = ()
_BOLD: Markup = ("bold",)
_FAINT: Markup = ("light",)
_GOOD: Markup = ("green",)
_UNSURE: Markup = ("yellow", "bold")
_BAD: Markup = ("red", "bold")

_GAP = "  "
_INDENT = "    "
_LABEL = 10  # the widest of the words that begin a line of details
_LONGEST_CELL = 24
_LEAST_NAME = 26


class _Outcome(NamedTuple):
    word: str
    counted: str
    markup: Markup


# In the order in which the closing line counts them.
_OUTCOMES: Mapping[str, _Outcome] = {
    "pass": _Outcome("PASS", "passed", _GOOD),
    "fail": _Outcome("FAIL", "failed", _BAD),
    "error": _Outcome("ERROR", "error", _BAD),
    "unanswered": _Outcome("NO ANSWER", "without an answer", _BAD),
    "inconclusive": _Outcome("INCONCLUSIVE", "inconclusive", _UNSURE),
    "skipped": _Outcome("SKIPPED", "skipped", _FAINT),
}
_GATES: Mapping[str, tuple[str, Markup]] = {
    "pass": ("passed", _GOOD),
    "fail": ("failed", _BAD),
    "inconclusive": ("no answer", _UNSURE),
    "not_gated": ("not gated", _FAINT),
}


def summary(
    reports: Sequence[AmpReport],
    width: int,
    verbosity: int,
    hidden: Mapping[str, int] | None = None,
) -> list[Line]:
    """The report of a whole run; nothing where nothing was measured.

    `hidden` says for each setting how many tests' markers hid the command line's value.
    `verbosity` is pytest's: below 0 one line per test that did not pass, above 0 every gate,
    suppressed finding and setting.
    """
    if not reports:
        return []
    if verbosity < 0:
        lines = [_brief(report, width) for report in reports if _outcome(report) != "pass"]
        return [fit(line, width) for line in (*lines, _counts(reports))]
    lines = [
        *_heading(reports, width, verbosity, hidden or {}),
        (),
        *_table(reports, width),
        (),
        *_details(reports, width, verbosity),
        *_closing(reports, verbosity),
    ]
    return [fit(line, width) for line in lines]


def plain(line: Line) -> str:
    """The text of a line without its markup."""
    return "".join(span.text for span in line)


# -- text ------------------------------------------------------------------------------------


def ascii_only(text: str) -> str:
    """Printable ASCII on one line; everything else as the escape that Python would write."""
    return "".join(
        char if " " <= char <= "~" else char.encode("unicode_escape").decode() for char in text
    )


def _sentence(text: str) -> str:
    return ascii_only(" ".join(text.split()))


def cut(text: str, width: int) -> str:
    """At most `width` characters, with dots where something is missing at the end."""
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."[: max(width, 0)]


def _cut_middle(text: str, width: int) -> str:
    if len(text) <= width or width < 8:
        return cut(text, width)
    tail = (width - 3) // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def _ever_shorter(path: str) -> Iterator[str]:
    """The path, then without its first directory, and so on down to the file."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield f".../{path}"


def shorten(nodeid: str, width: int) -> str:
    """A node id in at most `width` characters: the function and its parameters give way last."""
    path, name = _split(ascii_only(nodeid))
    base, bracket, parameters = name.partition("[")
    function = base.rpartition("::")[2] + bracket + parameters
    shorter = [f"{shown}::{name}" for shown in _ever_shorter(path)] if path else []
    fitting = (text for text in (*shorter, name, f"...::{function}") if len(text) <= width)
    return next(fitting, _cut_middle(function, width))


def _split(nodeid: str) -> tuple[str, str]:
    """The file and the name in it; parameters may hold ``::`` and ``/`` too."""
    base, bracket, parameters = nodeid.partition("[")
    path, separator, name = base.partition("::")
    return (path, name + bracket + parameters) if separator else ("", nodeid)


def fit(line: Line, width: int) -> Line:
    """The line without trailing space, and cut if it is too wide."""
    room = len(plain(line)[:width].rstrip())
    spans: list[Span] = []
    for text, markup in line:
        if text[: max(room, 0)]:
            spans.append(Span(text[:room], markup))
        room -= len(text)
    return tuple(spans)


def _wrapped(text: str, width: int, hanging: str) -> list[str]:
    return textwrap.wrap(
        text, max(width, 20), subsequent_indent=hanging, break_on_hyphens=False
    )  # fmt: skip


# -- heading ---------------------------------------------------------------------------------


def _heading(
    reports: Sequence[AmpReport], width: int, verbosity: int, hidden: Mapping[str, int]
) -> Iterator[Line]:
    for place, dtypes in _places(reports):
        parts = [place.device, *dtypes, *_versions(place), *_flags(place, verbosity)]
        # A part such as "CUDA 12.8" stays on one line, so wrapping must not see its spaces.
        text = ", ".join(ascii_only(part).replace(" ", "\0") for part in parts)
        for line in _wrapped(text, width, _GAP):
            yield (Span(line.replace("\0", " ")),)
    for name, count in hidden.items():
        tests = "1 test keeps its own" if count == 1 else f"{count} tests keep their own"
        yield (Span(f"{tests} {ascii_only(name)}"),)


def _places(reports: Iterable[AmpReport]) -> list[tuple[Environment, list[str]]]:
    """Each distinct environment once, with the dtypes that ran in it."""
    places: list[tuple[Environment, list[str]]] = []
    for here in (report.environment for report in reports):
        if here is None:
            continue
        dtype = here.dtype if here.native_support else f"{here.dtype} (no native support)"
        place = dataclasses.replace(here, dtype="", native_support=True)
        dtypes = next((known for other, known in places if other == place), None)
        if dtypes is None:
            places.append((place, [dtype]))
        elif dtype not in dtypes:
            dtypes.append(dtype)
    return places


def _versions(place: Environment) -> Iterator[str]:
    yield f"torch {place.torch}"
    for name, version in (("CUDA", place.cuda), ("cuDNN", place.cudnn), ("driver", place.driver)):
        if version:
            yield f"{name} {version}"


# Flags that move a baseline, as people call them; the others are told with -v.
_TELLING: Mapping[str, str] = {
    "float32_matmul_precision": "matmul precision",
    "cuda.matmul.allow_tf32": "tf32 matmul",
    "cudnn.allow_tf32": "tf32 cudnn",
    "cudnn.benchmark": "cudnn.benchmark",
    "deterministic_algorithms": "deterministic",
    "num_threads": "threads",
}


def _flags(place: Environment, verbosity: int) -> Iterator[str]:
    if verbosity > 0:
        yield from (f"{name} {_switch(value)}" for name, value in place.flags.items())
        return
    for name, title in _TELLING.items():
        foreign = name.startswith("cu") and place.device_type != "cuda"
        idle = name == "num_threads" and place.device_type != "cpu"
        usual = name == "deterministic_algorithms" and not place.flags.get(name)
        if name in place.flags and not (foreign or idle or usual):
            yield f"{title} {_switch(place.flags[name])}"


def _switch(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


# -- table -----------------------------------------------------------------------------------


def _step_time(report: AmpReport) -> str:
    fp32, amp = (units.duration(run.step_time_s if run else None) for run in _both(report))
    return units.change(fp32, amp)


def _memory(report: AmpReport) -> str:
    fp32, amp = (units.size(run.peak_bytes if run else None) for run in _both(report))
    return units.change(fp32, amp)


def _both(report: AmpReport) -> tuple[ArmRun | None, ArmRun | None]:
    """The two arms; None for one that never ran, as after an error."""
    return report.arms.get("fp32"), report.arms.get("amp")


def _loss_diff(report: AmpReport) -> str:
    amp = report.arms.get("amp")
    losses = [loss for series in amp.losses_by_key.values() for loss in series] if amp else []
    strange = next((loss for loss in losses if not math.isfinite(loss)), None)
    return units.share(report.loss_diff) if strange is None else f"{strange}"


def _scaler(report: AmpReport) -> str:
    amp = report.arms.get("amp")
    parts = [units.power(amp.scales[-1])] if amp and amp.scales else []
    if amp and amp.skipped_steps:
        parts.append(units.plural(amp.skipped_steps, "skip"))
    return ", ".join(parts) or units.NOTHING


@dataclass(frozen=True)
class Column:
    """A figure of the table, and the gates whose verdict colours it."""

    title: str
    align: Literal["<", ">"]
    text: Callable[[AmpReport], str]
    gates: tuple[str, ...] = ()

    def span(self, report: AmpReport) -> Span:
        verdicts = {gate.verdict for gate in report.gates if gate.name in self.gates}
        markup = _BAD if "fail" in verdicts else _UNSURE if "inconclusive" in verdicts else _PLAIN
        return Span(cut(self.text(report), _LONGEST_CELL), markup)


_SPEEDUP = Column(
    "speedup", "<", lambda report: str(report.speedup or units.NOTHING),
    ("speedup", "compare:speedup"),
)  # fmt: skip
COLUMNS = (
    Column("step time", ">", _step_time),
    _SPEEDUP,
    Column("memory", ">", _memory, ("memory_reduction", "compare:memory")),
    Column("loss diff", ">", _loss_diff, ("loss_diff", "compare:loss")),
    Column("coverage", ">", lambda report: units.share(report.coverage), ("coverage",)),
    Column("scaler", "<", _scaler, ("skipped_steps",)),
)
_ALIGN = {column.title: column.align for column in COLUMNS}


@dataclass(frozen=True)
class _Layout:
    """Which cells stand on which line of a row, how wide each is, and the same without figures."""

    rows: Sequence[Sequence[str]]
    reasons: Sequence[Sequence[str]]
    sizes: Mapping[str, int]

    def render(self, cells: Mapping[str, Span], *, reason: bool = False) -> Iterator[Line]:
        for number, titles in enumerate(self.reasons if reason else self.rows):
            line = [Span(_INDENT if number else "")]
            for title in titles:
                cell = cells.get(title, Span(""))
                space = Span(" " * (self.sizes[title] - len(cell.text)))
                gap = Span(_GAP if len(line) > 1 else "")
                line += [gap, space, cell] if _ALIGN.get(title) == ">" else [gap, cell, space]
            yield tuple(line)

    @property
    def width(self) -> int:
        return max(
            len(_INDENT) * bool(number)
            + sum(self.sizes[title] for title in titles)
            + len(_GAP) * (len(titles) - 1)
            for number, titles in enumerate(self.rows)
        )


def _table(reports: Sequence[AmpReport], width: int) -> Iterator[Line]:
    files: dict[str, list[AmpReport]] = {}
    for report in reports:
        files.setdefault(_split(ascii_only(report.nodeid))[0], []).append(report)
    layout = _layout(reports, width)
    titles = ["test", *_ALIGN, "verdict"]
    yield from layout.render({title: Span(title, _BOLD) for title in titles})
    yield (Span("-" * layout.width),)
    for path, tests in files.items():
        if path:
            shown = (text for text in _ever_shorter(path) if len(text) <= width)
            yield (Span(next(shown, cut(path, width))),)
        for report in tests:
            yield from _row(report, layout)


def _row(report: AmpReport, layout: _Layout) -> Iterator[Line]:
    outcome = _shown(report)
    suffix = _occasion(report)
    path, name = _split(ascii_only(report.nodeid))
    indent = _GAP if path else ""
    room = layout.sizes["test"]
    name = indent + shorten(name, room - len(indent) - len(suffix)) + suffix
    cells = {"test": Span(cut(name, room)), "verdict": Span(outcome.word, outcome.markup)}
    if reason := _why_nothing(report):
        cells["reason"] = Span(cut(reason, layout.sizes["reason"]))
    else:
        cells |= {column.title: column.span(report) for column in COLUMNS}
    yield from layout.render(cells, reason=bool(reason))


def _layout(reports: Sequence[AmpReport], width: int) -> _Layout:
    """One line per test where there is room for it; else its name first, the figures below."""
    sizes = {
        column.title: max(len(column.title), *(len(column.span(report).text) for report in reports))
        for column in COLUMNS
    }
    figures = sum(sizes.values()) + len(_GAP) * (len(sizes) - 1)
    sizes["verdict"] = max(len("verdict"), *(len(_shown(report).word) for report in reports))
    longest = max(
        len(_GAP + _split(ascii_only(report.nodeid))[1] + _occasion(report)) for report in reports
    )
    room = width - figures - sizes["verdict"] - 2 * len(_GAP)
    if room >= min(longest, _LEAST_NAME):
        sizes |= {"test": min(longest, room), "reason": figures}
        return _Layout([["test", *_ALIGN, "verdict"]], [["test", "reason", "verdict"]], sizes)
    beside = sizes["speedup"] + sizes["verdict"] + 2 * len(_GAP)
    below = len(_INDENT) + figures - sizes["speedup"] - len(_GAP)
    sizes["test"] = min(width, max(longest + beside, below)) - beside
    sizes["reason"] = width - len(_INDENT)
    first = ["test", "speedup", "verdict"]
    return _Layout([first, *_flowed(sizes, width)], [first, ["reason"]], sizes)


def _flowed(sizes: Mapping[str, int], width: int) -> list[list[str]]:
    """The figures that do not stand beside the name, on as few lines as they need."""
    lines: list[list[str]] = []
    used = width
    for title in (title for title in _ALIGN if title != _SPEEDUP.title):
        used += len(_GAP) + sizes[title]
        if used > width:
            lines.append([])
            used = len(_INDENT) + sizes[title]
        lines[-1].append(title)
    return lines


def _occasion(report: AmpReport) -> str:
    attempt = f" (attempt {report.attempt})" if report.attempt > 1 else ""
    return attempt if report.rank is None else f"{attempt} (rank {report.rank})"


def _why_nothing(report: AmpReport) -> str:
    """Why a test has no figures, on one line; empty where it has some."""
    if report.verdict == "skipped":
        return _sentence(report.skip_reason or "skipped without a reason")
    if report.verdict != "error":
        return ""
    error = report.error
    if error is None:
        return "ended by an exception"
    parts = [f"{error.arm} arm" if error.arm else "", error.phase or ""]
    parts += [f"step {error.step}" if error.step is not None else "", error.type]
    return _sentence(f"{', '.join(part for part in parts if part)}: {error.message}")


def _outcome(report: AmpReport) -> str:
    """The verdict; a pass that ``--amp-strict`` does not let pass is none."""
    return "unanswered" if report.verdict == "pass" and report.unanswered else report.verdict


def _shown(report: AmpReport) -> _Outcome:
    outcome = _OUTCOMES[_outcome(report)]
    return outcome._replace(markup=_BAD) if report.unanswered else outcome


# -- details ---------------------------------------------------------------------------------


class _Entry(NamedTuple):
    label: str
    markup: Markup
    text: str


def _details(reports: Sequence[AmpReport], width: int, verbosity: int) -> Iterator[Line]:
    for report in reports:
        entries = [*_said(report), *(_measured(report) if verbosity > 0 else ())]
        if verbosity > 0:
            entries = [*_kept(report), *entries]
        if not entries:
            continue
        outcome = _shown(report)
        nodeid = shorten(report.nodeid, width - len(outcome.word) - len(_GAP))
        yield Span(outcome.word, outcome.markup), Span(_GAP + nodeid)
        for label, markup, text in entries:
            head = f"{label:<{_LABEL}}{_GAP}"
            margin = " " * (len(_GAP) + len(head))
            first, *more = _wrapped(_sentence(text), width - len(margin), "") or [""]
            yield Span(_GAP), Span(head, markup), Span(first)
            for rest in more:
                yield (Span(margin + rest),)
        yield ()


def _said(report: AmpReport) -> Iterator[_Entry]:
    """What has to be said at any verbosity."""
    for gate in report.gates:
        if gate.verdict in ("fail", "inconclusive") or gate.unmeasured:
            yield _gate(gate)
    spoken = [finding for finding in report.findings if finding.suppressed is None]
    for finding in sorted(spoken, key=lambda finding: (finding.severity, finding.code)):
        yield _Entry(finding.severity, _BAD if finding.stands else _UNSURE, _finding(finding))
    for note in report.notes:
        yield _Entry("note", _PLAIN, note)


def _gate(gate: Gate) -> _Entry:
    word, markup = ("unmeasured", _UNSURE) if gate.unmeasured else _GATES[gate.verdict]
    return _Entry(word, markup, f"{gate.name}: {gate.reason}")


def _finding(finding: Finding) -> str:
    return f"{finding} (confirmed by a rerun)" if finding.confirmed else str(finding)


def _kept(report: AmpReport) -> Iterator[_Entry]:
    """The gates that `_said` has nothing to say about."""
    for gate in report.gates:
        if gate.verdict == "pass" or (gate.verdict == "not_gated" and not gate.unmeasured):
            yield _gate(gate)


def _measured(report: AmpReport) -> Iterator[_Entry]:
    """How it was measured: told with -v."""
    for finding in report.findings:
        if finding.suppressed is not None:
            yield _Entry("suppressed", _FAINT, f"{finding} [{finding.suppressed}]")
    if reason := _why_nothing(report):
        yield _Entry("reason", _PLAIN, reason)
    if report.environment is not None:
        yield _Entry("device", _FAINT, f"{report.environment.device}, {report.environment.dtype}")
    if report.noise_floor is not None and math.isfinite(report.noise_floor):
        floor = units.share(report.noise_floor)
        yield _Entry("noise", _FAINT, f"fp32 drifts {floor} from itself under rounding")
    if report.speedup is not None:
        pairs = units.plural(report.speedup.pairs, "pair")
        steps = units.plural(report.speedup.block_steps, "step")
        yield _Entry("timing", _FAINT, f"{pairs} of blocks of {steps}")
    fp32, amp = _both(report)
    if fp32 and amp and (fp32.reserved_bytes, amp.reserved_bytes) != (None, None):
        reserved = units.change(units.size(fp32.reserved_bytes), units.size(amp.reserved_bytes))
        yield _Entry("reserved", _FAINT, reserved)
    if report.phases_s:
        phases = [f"{name} {units.duration(spent)}" for name, spent in report.phases_s.items()]
        whole = f"{units.duration(report.duration_s)} in all"
        yield _Entry("phases", _FAINT, ", ".join([*phases, whole]))
    chosen = [
        f"{name} {_value(setting.value)} ({setting.source})"
        for name, setting in report.settings.items()
        if setting.source != "default"
    ]
    if chosen:
        yield _Entry("settings", _FAINT, ", ".join(chosen))


def _value(value: Any) -> str:
    """A setting as one would give it on the command line."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_value(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(_value, value))
    return units.number(value) if isinstance(value, float) else str(value)


# -- closing ---------------------------------------------------------------------------------


def _brief(report: AmpReport, width: int) -> Line:
    outcome = _shown(report)
    reason = _why_nothing(report) or next((_sentence(entry.text) for entry in _said(report)), "")
    room = width - len(outcome.word) - 1
    nodeid = shorten(report.nodeid, room)
    text = f"{nodeid} - {reason}" if reason else nodeid
    return Span(outcome.word, outcome.markup), Span(f" {cut(text, room)}")


def _closing(reports: Sequence[AmpReport], verbosity: int) -> Iterator[Line]:
    suppressed = sum(
        finding.suppressed is not None for report in reports for finding in report.findings
    )
    if suppressed:
        where = "" if verbosity > 0 else "; -v shows them and why"
        yield (Span(f"{units.plural(suppressed, 'finding')} suppressed{where}", _FAINT),)
    open_questions = sum(
        report.verdict == "inconclusive" and not report.unanswered for report in reports
    )
    if open_questions:
        what = f"{units.plural(open_questions, 'test')} without an answer"
        yield (Span(f"{what}; --amp-strict would fail it", _UNSURE),)
    yield _counts(reports)


def _counts(reports: Sequence[AmpReport]) -> Line:
    """4 passed, 1 failed, 1 inconclusive, 2 skipped"""
    counter = Counter(_outcome(report) for report in reports)
    spans: list[Span] = []
    for name, outcome in _OUTCOMES.items():
        if count := counter[name]:
            spans.append(Span(", " if spans else ""))
            word = outcome.counted + ("s" if name == "error" and count > 1 else "")
            spans.append(Span(f"{count} {word}", outcome.markup))
    return tuple(spans)
