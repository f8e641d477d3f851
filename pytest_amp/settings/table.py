"""The table of settings: each one is defined here, and only here, with its range and help.

`plugin.options` turns the table into command line options, ini keys and marker keywords. This
module knows neither pytest nor torch. If a value is not valid, a `ValueError` says what is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_amp.codes import COMPARED_METRICS
from pytest_amp.recipes import NAMES, recipe, recipe_or_auto
from pytest_amp.settings import parsers as read


class Entry(NamedTuple):
    """One row of the table. Everything that is special about a setting stands in its columns.

    Attributes:
        name: the marker's keyword. The names of the option and the ini key are made from it.
        parse: reads a Python value or its text; raises ValueError if it is not valid.
        default: the value if no level gives one.
        metavar: what stands for the value in ``--help``.
        help: what the setting means, on one line.
        marker: whether it is also a keyword of the marker.
        shown: the default as one writes it; None if `write` can tell.
        bare: what the option means without a value; None if it needs one.
        switch: whether the option takes no value at all.
        adds_up: whether an option that is given several times adds up to one list.
        merges: whether the levels' values are merged. If not, the strongest level wins.
        off_by_none: whether ``none`` turns the setting off. If not, it restores the default.
        gating: whether giving the setting asks for a verdict.
        write: returns a value as one would write it on the command line.
    """

    name: str
    parse: Callable[[object], Any]
    default: Any
    metavar: str
    help: str
    marker: bool = True
    shown: str | None = None
    bare: str | None = None
    switch: bool = False
    adds_up: bool = False
    merges: bool = False
    off_by_none: bool = False
    gating: bool = False
    write: Callable[[Any], str] = read.written

    @property
    def flag(self) -> str:
        """The name of the command line option."""
        return "--amp-" + self.name.replace("_", "-")

    @property
    def ini(self) -> str:
        """The name of the key in pytest's ini file."""
        return "amp_" + self.name

    @property
    def default_shown(self) -> str:
        """The default as one writes it on the command line."""
        return self.write(self.default) or "none" if self.shown is None else self.shown


TABLE: tuple[Entry, ...] = (
    Entry(
        "min_speedup", read.threshold(read.POSITIVE_RATIO), None, "RATIO",
        "minimum speedup: fp32 step time / amp step time",
        gating=True,
    ),
    Entry(
        "min_memory_reduction", read.threshold(read.REDUCTION), None, "FRACTION",
        "minimum memory reduction: 1 - amp peak / fp32 peak",
        gating=True,
    ),
    Entry(
        "max_loss_diff", read.threshold(read.DIFFERENCE), 0.02, "FRACTION",
        "maximum relative difference between the tails of the two loss curves",
        off_by_none=True, gating=True,
    ),
    Entry(
        "loss_atol", read.number(read.ATOL), 0.005, "NUMBER",
        "absolute loss difference that is always accepted, for losses near zero",
    ),
    Entry(
        "max_val_loss_diff", read.threshold(read.DIFFERENCE), 0.05, "FRACTION",
        "maximum relative difference of a training's validation losses in its last epoch",
        off_by_none=True, gating=True,
    ),
    Entry(
        "max_accuracy_diff", read.threshold(read.SHARE), None, "SHARE",
        "maximum difference of a training's validation accuracies in its last epoch",
        gating=True,
    ),
    Entry(
        "min_coverage", read.threshold(read.SHARE), None, "SHARE",
        "minimum share of matmul, convolution and attention FLOPs in the amp dtype",
        gating=True,
    ),
    Entry(
        "max_skipped_steps", read.whole_threshold, None, "N",
        "maximum number of optimizer steps that the GradScaler may skip",
        gating=True,
    ),
    Entry(
        "preset", read.preset, None, "NAME",
        "thresholds that go together; classic: "
        + ", ".join(f"{name} {value:g}" for name, value in read.PRESETS["classic"].items()),
        gating=True,
    ),
    Entry(
        "dtype", read.dtype, None, "DTYPE",
        "float16, bfloat16, or auto: what torch.autocast uses on the device (see policy)",
        shown="auto",
    ),
    Entry(
        "reference", recipe, "fp32", "RECIPE",
        f"what to compare with: {', '.join(NAMES)}, and +compile, +channels_last or +tf32",
    ),
    Entry(
        "candidate", recipe_or_auto, None, "RECIPE",
        "what to measure: a recipe, as for --amp-reference, or auto: autocast in the dtype",
        shown="auto",
    ),
    Entry(
        "init_scale", read.number(read.SCALE), 65536.0, "SCALE",
        "the loss scale that arm.scaler begins with",
    ),
    Entry(
        "growth_interval", read.whole(1, 1_000_000_000), 2000, "N",
        "steps without an overflow after which arm.scaler doubles its loss scale",
    ),
    Entry(
        "device", read.device, "auto", "DEVICE",
        "auto (cuda, then xpu, mps, else cpu), cpu, cuda, cuda:N, xpu, xpu:N or mps",
    ),
    Entry(
        "policy", read.policy, "auto", "POLICY",
        "autocast's rules in a static run on a CPU: native, cuda, or auto: cuda without a GPU",
    ),
    Entry("steps", read.whole(1, 1_000_000), 20, "N", "steps of the parity run, per arm"),
    Entry("warmup", read.whole(0, 1_000_000), 3, "N", "steps before anything is timed, per arm"),
    Entry(
        "max_time", read.number(read.SECONDS), 30.0, "SECONDS",
        "seconds that timing one test may take",
    ),
    Entry(
        "error_rate", read.number(read.RATE), 0.01, "P",
        "bound on the probability of each wrong decision by a timing gate in one process, and by "
        "the loss gate over several seeds",
    ),
    Entry(
        "confirm", read.confirm, None, "ANSWERS",
        "whose answers of timing gates a fresh process gives too: off, red (fails), all, or auto: "
        "red under --amp-strict",
        shown="auto",
    ),
    Entry(
        "processes", read.whole(1, 1000), 1, "N",
        "decide the speedup over the medians of up to so many fresh processes",
    ),
    Entry(
        "seed", read.whole(0, 2**32 - 1), 0, "N",
        "seed of python, numpy and torch, set before the test's fixtures and before each arm",
    ),
    Entry(
        "seeds", read.whole(1, 1000), 1, "N",
        "judge the loss by its mean difference over so many seeds, from --amp-seed on",
    ),
    Entry(
        "select", read.select, ("AMP",), "CODES",
        "rules to apply: codes or prefixes, or all",
        shown="all", adds_up=True,
    ),
    Entry(
        "ignore", read.ignore, {}, "CODES", "rules to suppress: codes or prefixes",
        adds_up=True, merges=True,
    ),
    Entry(
        "record", read.flag, True, "BOOL",
        "hand timed results to pytest-benchmark, to save and compare; gates never depend on it",
    ),
    Entry(
        "static", read.flag, False, "BOOL", "no timing: rules, coverage, memory and parity only",
        marker=False, switch=True,
    ),
    Entry(
        "forecast", read.forecast, (), "DEVICES",
        "forecast the speedup on GPUs: a list of their names, or all (bare)",
        marker=False, shown="off", bare="all",
    ),
    Entry(
        "strict", read.strict, frozenset(), "KINDS",
        "fail if an answer is missing; any of " + ", ".join(read.STRICT_KINDS) + " (bare: all)",
        marker=False, shown="off", bare="all", gating=True,
    ),
    Entry(
        "snapshot", read.snapshot, "off", "MODE",
        "compare with the dtype map kept beside the test file (bare: compare), or update it",
        marker=False, bare="compare",
    ),
    Entry(
        "compare", read.text, None, "REF",
        "compare results with the newest passing ones (bare), a run's number, or files",
        marker=False, bare="newest",
    ),
    Entry(
        "compare_branch", read.text, None, "BRANCH", "compare with results of this branch only",
        marker=False,
    ),
    Entry(
        "compare_exact", read.flag, False, "BOOL",
        "compare with results of the same versions and flags only", marker=False, switch=True,
    ),
    Entry(
        "compare_fail", read.allowed, {}, "METRIC:PCT",
        f"fail if a metric ({', '.join(COMPARED_METRICS)}) got worse by more than this: "
        "speedup:10%,memory:5%",
        marker=False, adds_up=True, gating=True, write=read.written_percents,
    ),
)  # fmt: skip

BY_NAME: Mapping[str, Entry] = {entry.name: entry for entry in TABLE}


def entry_for(name: str, *, marker: bool = False) -> Entry:
    """Return the row of that name.

    Args:
        name: the setting's name.
        marker: whether it has to be a keyword of the marker.

    Raises:
        ValueError: there is no such setting; the message lists the valid names.
    """
    if name not in _valid(marker):
        raise ValueError(unknown(name, _valid(marker)))
    return BY_NAME[name]


def unknown(name: str, valid: Sequence[str] | None = None) -> str:
    """Return a message about a name that is not valid: it suggests a close one, and lists all.

    Args:
        name: the name.
        valid: the names of the settings that may be given; by default all.
    """
    import difflib

    valid = _valid(marker=False) if valid is None else valid
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown setting {name!r}{hint}; valid are {', '.join(valid)}"


def _valid(marker: bool) -> list[str]:
    return [entry.name for entry in TABLE if entry.marker or not marker]


def written(name: str, value: object) -> str:
    """Return a setting's value as one would write it on the command line.

    A stored report may have settings that this version does not know; their values are written too.
    """
    return BY_NAME[name].write(value) if name in BY_NAME else read.written(value)


def parse(entry: Entry, value: object) -> Any:
    """Parse a setting's value; None and ``none`` unset it.

    Raises:
        ValueError: the value is not valid; the message names the setting and what is valid.
    """
    unset = value is None or (isinstance(value, str) and value.strip().lower() == "none")
    if unset:
        return None if entry.off_by_none else _parsed_default(entry)
    try:
        return entry.parse(value)
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from None


def with_preset(raw: Mapping[str, object]) -> Mapping[str, object]:
    """Return a level's values with those of the preset that it names; its own ones are stronger."""
    return {**read.PRESETS.get(str(raw.get("preset")).strip(), {}), **raw}


def disagreement(raw: Mapping[str, object]) -> str | None:
    """Return what is wrong with a level that names both a dtype and a candidate; None if nothing.

    A dtype is the short way to name the candidate that is autocast in it.

    Raises:
        ValueError: one of them is not valid.
    """
    if "dtype" not in raw or "candidate" not in raw:
        return None
    dtype = parse(BY_NAME["dtype"], raw["dtype"])
    candidate = parse(BY_NAME["candidate"], raw["candidate"])
    if dtype is None or candidate is None or candidate.dtype == dtype:
        return None
    short = "fp16" if dtype == "float16" else "bf16"
    return (
        f"dtype={dtype} is short for candidate={short}, and candidate={candidate} is given too: "
        "leave dtype out"
    )


def _parsed_default(entry: Entry) -> Any:
    return None if entry.default is None else entry.parse(entry.default)


Level = tuple[str, Mapping[str, object]]


def in_force(entry: Entry, levels: Sequence[Level]) -> tuple[Any, str]:
    """Return a setting's value in force, parsed, and the source that it comes from.

    Args:
        entry: the setting.
        levels: the strongest first; each is a source, and its values as the user wrote them.

    Raises:
        ValueError: a value is not valid.
    """
    given = [(source, parse(entry, raw[entry.name])) for source, raw in levels if entry.name in raw]
    if not given:
        return _parsed_default(entry), "default"
    source, value = given[0]
    if entry.merges:
        value = {pattern: why for _, each in reversed(given) for pattern, why in each.items()}
    return value, source
