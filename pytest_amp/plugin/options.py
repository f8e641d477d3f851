"""Turn the table of settings into command line options, ini keys and marker keywords."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp import codes
from pytest_amp.settings import table as settings
from pytest_amp.settings.table import Entry, Level

if TYPE_CHECKING:
    from pytest_amp.settings.resolved import Settings

GROUP = """\
mixed precision (pytest-amp); settings are also ini keys (amp_steps) and
keywords of @pytest.mark.amp (steps); thresholds may differ by device
(cuda=1.3,cpu=1.0)"""

MARKER = """\
amp(setting=value, ...): run the test's training step in float32
and under autocast, and gate the results. Each of the settings is also an
option (--amp-steps) and an ini key (amp_steps):"""


# What an xdist worker gets from the controller, for the processes that it starts.
COMMAND_LINE = "amp_command_line"
# The settings that ask for a comparison with stored results.
COMPARING = ("compare", "compare_fail", "compare_branch", "compare_exact")
LEVELS = pytest.StashKey[tuple[Level, Level, Level]]()


def add_options(parser: pytest.Parser) -> None:
    """Add each row of the table as an option and an ini key; for both, None means unset."""
    group = parser.getgroup("amp", GROUP)
    for entry in settings.TABLE:
        group.addoption(
            entry.flag, default=None, help=_help(entry).replace("%", "%%"), **_kind(entry)
        )
        parser.addini(entry.ini, help=f"{entry.help} ({entry.flag})", default=None)
    group.addoption(
        "--amp-override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, even if a marker sets it; may be repeated (default: none)",
    )
    group.addoption(
        "--amp-json", default=None, metavar="PATH", help="write a JSON report (default: none)"
    )
    group.addoption(
        "--amp-html", default=None, metavar="PATH",
        help="write an HTML page with figures and history, as one file (default: none)",
    )  # fmt: skip
    group.addoption(
        "--amp-md", default=None, metavar="PATH",
        help="write a summary in Markdown, which fits into a comment (default: none)",
    )  # fmt: skip
    group.addoption(
        "--amp-codequality", default=None, metavar="PATH",
        help="write GitLab's code quality report (default: none)",
    )  # fmt: skip
    group.addoption(
        "--amp-summary", default="auto", choices=("auto", "off"),
        help="auto adds the summary to GitHub's, in a step that has one (default: auto)",
    )  # fmt: skip


def _kind(entry: Entry) -> dict[str, Any]:
    if entry.switch:
        return {"action": "store_true"}
    if entry.bare is not None:
        return {"nargs": "?", "const": entry.bare, "metavar": entry.metavar}
    if entry.adds_up:
        return {"action": "append", "metavar": entry.metavar}
    return {"metavar": entry.metavar}


def _help(entry: Entry) -> str:
    return f"{entry.help} (default: {entry.default_shown})"


def marker_help(in_full: bool) -> str:
    """Return the marker's help.

    Args:
        in_full: whether to list the keywords, for ``pytest --markers``. pytest does not wrap them.
    """
    if not in_full:
        return MARKER
    import textwrap

    rows = [
        textwrap.fill(
            _help(entry), 80, initial_indent=f"  {entry.name:<22}", subsequent_indent=" " * 24
        )
        for entry in settings.TABLE
        if entry.marker
    ]
    return "\n".join([MARKER, *rows])


def session_levels(config: pytest.Config) -> tuple[Level, Level, Level]:
    """Return the settings of the overrides, the command line and the ini file, in this order.

    Raises:
        pytest.UsageError: a value is not valid; the message names the option or the key.
    """
    _refuse_unknown_keys(config)
    override: dict[str, object] = {}
    for pair in config.getoption("amp_override"):
        name, separator, value = pair.partition("=")
        if not separator:
            raise pytest.UsageError(f"--amp-override {pair!r} is not KEY=VALUE")
        _check(f"--amp-override {name.strip()}", name.strip(), value)
        override[name.strip()] = value
    cli: dict[str, object] = {}
    ini: dict[str, object] = {}
    for entry in settings.TABLE:
        given = config.getoption("amp_" + entry.name)
        if given is not None:
            values = given if entry.adds_up else [given]
            for value in values:
                _check(entry.flag, entry.name, value)
            cli[entry.name] = _joined(values) if entry.adds_up else given
        written = config.getini(entry.ini)
        if written not in (None, ""):
            _check(f"{config.inipath}: {entry.ini}", entry.name, written)
            ini[entry.name] = written
    levels: tuple[Level, Level, Level] = ("override", override), ("cli", cli), ("ini", ini)
    for source, raw in levels:
        if problem := settings.disagreement(raw):
            where = {"override": "--amp-override", "cli": "--amp-dtype and --amp-candidate"}
            raise pytest.UsageError(f"{where.get(source, config.inipath)}: {problem}")
    return levels


def _refuse_unknown_keys(config: pytest.Config) -> None:
    """Refuse an ini key that looks like one of ours, because its gate would never be judged.

    pytest itself only warns of it, unless ``--strict-config`` is given.

    Raises:
        pytest.UsageError: there is such a key; the message suggests the right one.
    """
    keys: Iterable[str] = getattr(config, "_get_unknown_ini_keys", list)()
    for key in sorted(keys):
        meant = key.lower().replace("-", "_")
        name = meant.removeprefix("amp_")
        if meant.startswith("amp_") or name in codes.GATES:
            known = settings.BY_NAME.get(name)
            hint = f"the key is {known.ini}" if known else settings.unknown(name)
            raise pytest.UsageError(f"{config.inipath or '-o'}: {key}: {hint}")


def command_line(config: pytest.Config) -> list[str]:
    """Return the command line of this run; an xdist worker has the controller's."""
    carried: Any = getattr(config, "workerinput", {}).get(COMMAND_LINE)
    return [str(word) for word in (carried or config.invocation_params.args)]


def gates_by_name(config: pytest.Config) -> bool:
    """Return whether this command itself asks for gates, apart from what the project adds to it."""
    import shlex

    typed = [*config.invocation_params.args, *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    gating = [entry.flag for entry in settings.TABLE if entry.gating]
    return any(str(word).startswith((*gating, "--amp-override")) for word in typed)


def is_gating(config: pytest.Config) -> bool:
    """Return whether an option, of this command or the project, sets gates or asks for answers."""
    return bool(given_gates(config)[0] or of_session(config.stash[LEVELS], "strict"))


def of_session(levels: tuple[Level, Level, Level], name: str) -> Any:
    """Return a setting's value in force for the run as a whole, where no marker has a say."""
    return settings.in_force(settings.BY_NAME[name], levels)[0]


def given_gates(config: pytest.Config) -> tuple[dict[str, str], bool]:
    """Return the gates that the command line sets, and whether it asks for a static run.

    Returns:
        The option of each gate by the gate's name, and whether the run is static.
    """
    levels = config.stash[LEVELS][:2]
    (_, override), (_, cli) = levels
    given: dict[str, str] = {}
    for name, gate in codes.GATES.items():
        entry = settings.BY_NAME[name]
        if not (name in override or name in cli) or settings.in_force(entry, levels)[0] is None:
            continue
        if name in override:
            given[gate] = f"--amp-override {name}={override[name]}"
        else:
            given[gate] = f"{entry.flag}={cli[name]}"
    whole = [(source, settings.with_preset(raw)) for source, raw in levels]
    for source, raw in levels:
        option = "--amp-override preset" if source == "override" else "--amp-preset"
        for name in settings.with_preset({key: raw[key] for key in raw if key == "preset"}):
            # A run need not have a training.
            if name not in codes.GATES or name == "max_accuracy_diff":
                continue
            if settings.in_force(settings.BY_NAME[name], whole)[0] is not None:
                given.setdefault(codes.GATES[name], f"{option}={raw['preset']}")
    limits, _ = settings.in_force(settings.BY_NAME["compare_fail"], levels)
    for metric in limits:
        given[f"compare:{metric}"] = f"--amp-compare-fail={metric}"
    return given, settings.in_force(settings.BY_NAME["static"], levels)[0]


def _joined(values: list[str]) -> str:
    """Join several lists into one.

    If a metric is limited twice, the last limit counts, so that the command line beats addopts.
    """
    words = [word.strip() for value in values for word in value.split(",") if word.strip()]
    return ",".join({word.partition(":")[0]: word for word in words}.values())


def _check(where: str, name: str, value: object) -> None:
    try:
        settings.parse(settings.entry_for(name), value)
    except ValueError as error:
        problem = str(error).removeprefix(f"{name}: ")  # `where` names it already
        raise pytest.UsageError(f"{where}: {problem}") from None


def marker_levels(item: pytest.Item) -> Iterator[Level]:
    """Yield the keywords of the test's ``amp`` markers, the closest marker first.

    Raises:
        ValueError: a keyword or its value is not valid.
    """
    for mark in _closest_first(item):
        if mark.args:
            raise ValueError(
                f"takes keywords only, and was given {mark.args!r}; "
                "write for example @pytest.mark.amp(min_speedup=1.3)"
            )
        for name, value in mark.kwargs.items():
            settings.parse(settings.entry_for(name, marker=True), value)
        if problem := settings.disagreement(mark.kwargs):
            raise ValueError(problem)
        yield "marker", mark.kwargs


def _closest_first(item: pytest.Item) -> Iterator[pytest.Mark]:
    """Yield the test's ``amp`` marks, the closest first.

    pytest lists the marks of a parametrized case after those of its function.
    """
    callspec = getattr(item, "callspec", None)
    case = [mark for mark in callspec.marks if mark.name == "amp"] if callspec else []
    yield from case
    yield from (mark for mark in item.iter_markers("amp") if mark not in case)


def item_settings(item: pytest.Item, session: tuple[Level, Level, Level]) -> Settings:
    """Return the settings of one test.

    Overrides are the strongest, then come its markers, the command line, the ini file and defaults.
    """
    from pytest_amp.settings.resolved import resolve

    override, cli, ini = session
    return resolve([override, *marker_levels(item), cli, ini])
