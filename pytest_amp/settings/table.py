"""The one table of settings: each is defined once, here, with its name, range and help.

`options` makes command line options, ini keys and marker keywords of it. This module knows
neither pytest nor torch; what it refuses, it refuses with a `ValueError` that says what is valid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_amp.codes import CODES
from pytest_amp.settings import thresholds
from pytest_amp.settings.thresholds import Range, Threshold

if TYPE_CHECKING:
    from pytest_amp.results.values import Setting

STRICT_KINDS = ("device", "inconclusive", "unmeasured", "baseline")
DTYPES = ("float16", "bfloat16")
SNAPSHOT_MODES = ("off", "compare", "update")
METRICS = ("speedup", "memory", "loss")
_METRIC = r"(\w+):([^%]+)%?"
_DEVICE = re.compile(r"(auto|(cpu|cuda|xpu|mps)(:\d+)?)")
_CODES = re.compile(r"AMP\d{0,3}")
# Which gate each threshold is for.
GATES: Mapping[str, str] = {
    "min_speedup": "speedup",
    "min_memory_reduction": "memory_reduction",
    "max_loss_diff": "loss_diff",
    "min_coverage": "coverage",
    "max_skipped_steps": "skipped_steps",
}
# A setting is the strongest level's; these are all levels' together.
UNIONS = frozenset({"ignore"})


class Entry(NamedTuple):
    """One row of the table. `parse` takes Python values and their text alike."""

    name: str
    parse: Callable[[object], Any]
    default: Any
    metavar: str
    help: str
    marker: bool = True

    @property
    def flag(self) -> str:
        return "--amp-" + self.name.replace("_", "-")

    @property
    def ini(self) -> str:
        return "amp_" + self.name


class Settings(NamedTuple):
    """The settings of one test, parsed, with where each came from.

    Sources: ``marker``, ``override``, ``cli``, ``ini`` or ``default``.
    """

    min_speedup: Threshold | None
    min_memory_reduction: Threshold | None
    max_loss_diff: Threshold | None
    loss_atol: float
    min_coverage: Threshold | None
    max_skipped_steps: Threshold | None
    dtype: str | None
    device: str
    steps: int
    warmup: int
    max_time: float
    error_rate: float
    seed: int
    select: tuple[str, ...]
    ignore: Mapping[str, str]
    record: bool
    static: bool
    strict: frozenset[str]
    snapshot: str
    compare: str | None
    compare_branch: str | None
    compare_exact: bool
    compare_fail: Mapping[str, float]
    sources: Mapping[str, str]

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """Those that are set, by their settings' names."""
        found = {name: getattr(self, name) for name in GATES}
        return {name: threshold for name, threshold in found.items() if threshold is not None}

    def described(self) -> dict[str, Setting]:
        """As the report records them."""
        from pytest_amp.results.values import Setting

        return {
            entry.name: Setting(_plain(getattr(self, entry.name)), self.sources[entry.name])
            for entry in TABLE
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Threshold):
        return value.plain()
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


_POSITIVE_RATIO = Range(0, 1000, False, True, "a ratio above 0 and at most 1000")
_REDUCTION = Range(-math.inf, 1, False, False, "a fraction below 1 (0.25 asks for a quarter less)")
_SHARE = Range(0, 1, False, True, "a share above 0 and at most 1")
_DIFFERENCE = Range(0, 100, True, True, "a relative difference from 0 to 100 (0.02 is 2%)")
_ATOL = Range(0, math.inf, True, False, "a finite number of 0 or more")
_PERCENT = Range(0, 10_000, True, True, "a percentage from 0 to 10000")
_DROP = Range(0, 100, True, False, "a percentage from 0 to below 100, by which a speedup may drop")
_SECONDS = Range(0, 86_400, False, True, "a number of seconds above 0 and at most 86400")
_RATE = Range(1e-9, 0.25, True, True, "a probability from 1e-9 to 0.25")


def _threshold(valid: Range) -> Callable[[object], Threshold]:
    return lambda value: thresholds.threshold(value, valid)


def _number(valid: Range) -> Callable[[object], float]:
    return lambda value: thresholds.number(value, valid)


def _whole(low: int, high: int) -> Callable[[object], int]:
    valid = Range(low, high, True, True, f"a whole number from {low} to {high}")

    def parse(value: object) -> int:
        number = thresholds.number(value, valid)
        if number != int(number):
            raise ValueError(f"{value!r} is not {valid.says}")
        return int(number)

    return parse


def _whole_threshold(value: object) -> Threshold:
    parsed = thresholds.threshold(value, Range(0, 10**6, True, True, "a number of steps from 0 up"))
    for number in parsed.by_device.values():
        if number is not None and number != int(number):
            raise ValueError(f"{number!r} is not a whole number of steps")
    return parsed


def _dtype(value: object) -> str | None:
    name = str(value).removeprefix("torch.").strip()
    if name == "auto":
        return None
    if name not in DTYPES:
        raise ValueError(f"{value!r} is not one of auto, {', '.join(DTYPES)}")
    return name


def _device(value: object) -> str:
    name = str(value).strip()
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"{value!r} is not one of auto, cpu, cuda, cuda:N, xpu, xpu:N, mps")
    return name


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return [word for word in re.split(r"[,\s]+", value) if word]
    if isinstance(value, Iterable):
        return [str(word) for word in value]
    raise ValueError(f"{value!r} is neither text nor a list")


def _code(word: str) -> str:
    if not (_CODES.fullmatch(word) and any(code.startswith(word) for code in CODES)):
        raise ValueError(
            f"{word!r} is neither a rule's code such as AMP203 nor a prefix such as AMP2"
        )
    return word


def _select(value: object) -> tuple[str, ...]:
    words = _words(value)
    if words == ["all"]:
        return ("AMP",)
    return tuple(_code(word) for word in words)


def _ignore(value: object) -> dict[str, str]:
    if isinstance(value, Mapping):
        reasons = {str(key): str(reason) for key, reason in value.items()}
    else:
        reasons = dict.fromkeys(_words(value), "ignored by the settings")
    for pattern in reasons:
        _code(pattern.partition("@")[0])
    return reasons


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def _strict(value: object) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(STRICT_KINDS) if value else frozenset()
    kinds = _words(value)
    if kinds in (["all"], ["true"]):
        return frozenset(STRICT_KINDS)
    for kind in kinds:
        if kind not in STRICT_KINDS:
            hint = _before_a_path(kind, "--amp-strict=all")
            raise ValueError(f"{kind!r} is not one of all, {', '.join(STRICT_KINDS)}{hint}")
    return frozenset(kinds)


def _snapshot(value: object) -> str:
    mode = str(value).strip()
    if mode not in SNAPSHOT_MODES:
        hint = _before_a_path(mode, "--amp-snapshot=compare")
        raise ValueError(f"{mode!r} is not one of {', '.join(SNAPSHOT_MODES)}{hint}")
    return mode


def _text(value: object) -> str:
    return str(value).strip()


def _allowed(value: object) -> dict[str, float]:
    """``speedup:10%`` and more of them, as fractions by metric."""
    allowed: dict[str, float] = {}
    for word in _words(value):
        found = re.fullmatch(_METRIC, word)
        if found is None or found[1] not in METRICS:
            raise ValueError(
                f"{word!r} is not METRIC:PCT with a metric of {', '.join(METRICS)}; "
                "write for example speedup:10%"
            )
        if found[1] in allowed:
            raise ValueError(f"{found[1]} is limited twice")
        drop = found[1] == "speedup"  # by all of itself it can't
        allowed[found[1]] = thresholds.number(found[2], _DROP if drop else _PERCENT) / 100
    return allowed


def _before_a_path(given: str, write: str) -> str:
    """A bare option takes the path that follows it for its value."""
    path = "/" in given or "\\" in given or given.endswith(".py")
    return f"; before a path write {write}" if path else ""


TABLE: tuple[Entry, ...] = (
    Entry(
        "min_speedup", _threshold(_POSITIVE_RATIO), None, "RATIO",
        "least speedup: fp32 step time / amp step time",
    ),
    Entry(
        "min_memory_reduction", _threshold(_REDUCTION), None, "FRACTION",
        "least memory reduction: 1 - amp peak / fp32 peak",
    ),
    Entry(
        "max_loss_diff", _threshold(_DIFFERENCE), 0.02, "FRACTION",
        "largest relative difference of the two loss curves' tails",
    ),
    Entry(
        "loss_atol", _number(_ATOL), 0.005, "NUMBER",
        "absolute loss difference that is always accepted, for losses near zero",
    ),
    Entry(
        "min_coverage", _threshold(_SHARE), None, "SHARE",
        "least share of matmul, convolution and attention FLOPs that ran in the amp dtype",
    ),
    Entry(
        "max_skipped_steps", _whole_threshold, None, "N",
        "most optimizer steps that the GradScaler may skip",
    ),
    Entry(
        "dtype", _dtype, None, "DTYPE",
        "float16, bfloat16, or auto: what torch.autocast uses on the device",
    ),
    Entry(
        "device", _device, "auto", "DEVICE",
        "auto (cuda, then xpu, mps, else cpu), cpu, cuda, cuda:N, xpu, xpu:N or mps",
    ),
    Entry("steps", _whole(1, 1_000_000), 20, "N", "steps of the parity run, per arm"),
    Entry("warmup", _whole(0, 1_000_000), 3, "N", "steps before anything is timed, per arm"),
    Entry("max_time", _number(_SECONDS), 30.0, "SECONDS", "seconds that timing one test may take"),
    Entry(
        "error_rate", _number(_RATE), 0.01, "P",
        "bound on each wrong decision of one timing gate in one process",
    ),
    Entry(
        "seed", _whole(0, 2**32 - 1), 0, "N",
        "seeds python, numpy and torch before the test's fixtures and each arm",
    ),
    Entry("select", _select, ("AMP",), "CODES", "rules that may speak: codes or prefixes, or all"),
    Entry("ignore", _ignore, {}, "CODES", "rules that are suppressed: codes or prefixes"),
    Entry(
        "record", _flag, True, "BOOL",
        "hand timed results to pytest-benchmark, to save and compare; gates never depend on it",
    ),
    Entry(
        "static", _flag, False, "BOOL", "no timing: rules, coverage, memory and parity only",
        marker=False,
    ),
    Entry(
        "strict", _strict, frozenset(), "KINDS",
        "fail where an answer is missing; any of " + ", ".join(STRICT_KINDS) + " (bare: all)",
        marker=False,
    ),
    Entry(
        "snapshot", _snapshot, "off", "MODE",
        "compare with the dtype map kept beside the test file (bare: compare), or update it",
        marker=False,
    ),
    Entry(
        "compare", _text, None, "REF",
        "hold results against the newest passing ones (bare), a run's number, or files",
        marker=False,
    ),
    Entry(
        "compare_branch", _text, None, "BRANCH", "compare with results of this branch only",
        marker=False,
    ),
    Entry(
        "compare_exact", _flag, False, "BOOL",
        "compare with results of the same versions and flags only", marker=False,
    ),
    Entry(
        "compare_fail", _allowed, {}, "METRIC:PCT",
        "fail where " + ", ".join(METRICS) + " got worse by more: speedup:10%,memory:5%",
        marker=False,
    ),
)  # fmt: skip

BY_NAME: Mapping[str, Entry] = {entry.name: entry for entry in TABLE}


def entry_for(name: str, *, marker: bool = False) -> Entry:
    """The row of that name, or a ValueError that lists the valid names."""
    if name not in _valid(marker):
        raise ValueError(unknown(name, marker=marker))
    return BY_NAME[name]


def unknown(name: str, *, marker: bool = False) -> str:
    """What to say of a name that no row has: a close one, and all that are valid."""
    import difflib

    valid = _valid(marker)
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown setting {name!r}{hint}; valid are {', '.join(valid)}"


def _valid(marker: bool) -> list[str]:
    return [entry.name for entry in TABLE if entry.marker or not marker]


def parse(entry: Entry, value: object) -> Any:
    """A parsed value; ``none`` unsets it. ValueError names the setting and what is valid."""
    unset = value is None or (isinstance(value, str) and value.strip().lower() == "none")
    if unset:
        return None if entry.name == "max_loss_diff" else _parsed_default(entry)
    try:
        return entry.parse(value)
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from None


def _parsed_default(entry: Entry) -> Any:
    return None if entry.default is None else entry.parse(entry.default)


Level = tuple[str, Mapping[str, object]]


def resolve(levels: Iterable[Level]) -> Settings:
    """Merge levels, the strongest first: each is a source and its values as the user wrote them."""
    levels = list(levels)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for entry in TABLE:
        given = [
            (source, parse(entry, raw[entry.name])) for source, raw in levels if entry.name in raw
        ]
        if not given:
            values[entry.name], sources[entry.name] = _parsed_default(entry), "default"
            continue
        sources[entry.name], values[entry.name] = given[0]
        if entry.name in UNIONS:
            values[entry.name] = {
                pattern: reason for _, each in reversed(given) for pattern, reason in each.items()
            }
    return Settings(**values, sources=sources)
