"""Parse settings' values, whether an option, an ini key or a marker gives them.

Each parser takes a Python value or its text, and raises ValueError, saying what is valid, for
anything that it can't accept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_amp import units
from pytest_amp.codes import CODES, COMPARED_METRICS
from pytest_amp.settings import numbers
from pytest_amp.settings.numbers import Range

if TYPE_CHECKING:
    from pytest_amp.settings.thresholds import Threshold

STRICT_KINDS = ("device", "inconclusive", "unmeasured", "baseline")
DTYPES = ("float16", "bfloat16")
# Thresholds that belong together, by the name of the preset.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "classic": {"min_speedup": 1.5, "min_memory_reduction": 0.40, "max_accuracy_diff": 0.01},
}
SNAPSHOT_MODES = ("off", "compare", "update")
POLICIES = ("auto", "native", "cuda")
CONFIRMATIONS = ("auto", "off", "red", "all")
_METRIC = r"(\w+):([^%]+)%?"
_DEVICES = ("cpu", "cuda", "xpu", "mps")

POSITIVE_RATIO = Range(0, 1000, False, True, "a ratio above 0 and at most 1000")
REDUCTION = Range(-math.inf, 1, False, False, "a fraction below 1 (0.25 asks for a quarter less)")
SHARE = Range(0, 1, False, True, "a share above 0 and at most 1")
DIFFERENCE = Range(0, 100, True, True, "a relative difference from 0 to 100 (0.02 is 2%)")
ATOL = Range(0, math.inf, True, False, "a finite number of 0 or more")
PERCENT = Range(0, 10_000, True, True, "a percentage from 0 to 10000")
DROP = Range(0, 100, True, False, "a percentage from 0 to below 100, by which a speedup may drop")
SECONDS = Range(0, 86_400, False, True, "a number of seconds above 0 and at most 86400")
SCALE = Range(0, 1e38, False, True, "a loss scale above 0 and at most 1e38")
RATE = Range(1e-9, 0.25, True, True, "a probability from 1e-9 to 0.25")


def threshold(valid: Range) -> Callable[[object], Threshold]:
    """Return a parser of thresholds whose numbers must lie in `valid`."""

    def parse(value: object) -> Threshold:
        from pytest_amp.settings.thresholds import threshold

        return threshold(value, valid)

    return parse


def number(valid: Range) -> Callable[[object], float]:
    """Return a parser of numbers that must lie in `valid`."""
    return lambda value: numbers.number(value, valid)


def whole(low: int, high: int) -> Callable[[object], int]:
    """Return a parser of whole numbers from `low` to `high`, both included."""
    valid = Range(low, high, True, True, f"a whole number from {low} to {high}")

    def parse(value: object) -> int:
        number = numbers.number(value, valid)
        if number != int(number):
            raise ValueError(f"{value!r} is not {valid.says}")
        return int(number)

    return parse


def whole_threshold(value: object) -> Threshold:
    """Parse a threshold that counts steps."""
    parsed = threshold(Range(0, 10**6, True, True, "a number of steps from 0 up"))(value)
    for number in parsed.by_device.values():
        if number is not None and number != int(number):
            raise ValueError(f"{number!r} is not a whole number of steps")
    return parsed


def dtype(value: object) -> str | None:
    """Parse a dtype's name, also as ``torch.float16``; None stands for "auto"."""
    name = str(value).removeprefix("torch.").strip()
    if name == "auto":
        return None
    if name not in DTYPES:
        raise ValueError(f"{value!r} is not one of auto, {', '.join(DTYPES)}")
    return name


def device(value: object) -> str:
    """Parse a device, such as ``cuda:1``. Whether there is one is another question."""
    name = str(value).strip()
    kind, colon, number = name.partition(":")
    numbered = not colon or (number.isascii() and number.isdecimal())
    if name != "auto" and not (kind in _DEVICES and numbered):
        raise ValueError(f"{value!r} is not one of auto, cpu, cuda, cuda:N, xpu, xpu:N, mps")
    return name


def words(value: object) -> list[str]:
    """Split text at commas and spaces; a list is taken as it is."""
    if isinstance(value, str):
        return [word for word in re.split(r"[,\s]+", value) if word]
    if isinstance(value, Iterable):
        return [str(word) for word in value]
    raise ValueError(f"{value!r} is neither text nor a list")


def code(word: str) -> str:
    """Return a rule's code, or a prefix of some code, unchanged if it is valid."""
    if not (word.startswith("AMP") and any(code.startswith(word) for code in CODES)):
        raise ValueError(
            f"{word!r} is neither a rule's code such as AMP203 nor a prefix such as AMP2"
        )
    return word


def select(value: object) -> tuple[str, ...]:
    """Parse a list of codes or prefixes; "all" becomes the prefix of them all."""
    given = words(value)
    if given == ["all"]:
        return ("AMP",)
    return tuple(code(word) for word in given)


def ignore(value: object) -> dict[str, str]:
    """Parse patterns with their reasons, or a list of patterns without reasons.

    A pattern is a code or a prefix, optionally with ``@`` and a glob for the module's path.
    """
    if isinstance(value, Mapping):
        reasons = {str(key): str(reason) for key, reason in value.items()}
    else:
        reasons = dict.fromkeys(words(value), "ignored by the settings")
    for pattern in reasons:
        code(pattern.partition("@")[0])
    return reasons


def flag(value: object) -> bool:
    """Parse a truth value as ini files write it; empty text is false."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{value!r} is neither yes nor no")


def strict(value: object) -> frozenset[str]:
    """Parse the kinds of missing answers that are failures; True and "all" mean all of them."""
    if isinstance(value, bool):
        return frozenset(STRICT_KINDS) if value else frozenset()
    kinds = words(value)
    if kinds in (["all"], ["true"]):
        return frozenset(STRICT_KINDS)
    for kind in kinds:
        if kind not in STRICT_KINDS:
            hint = before_a_path(kind, "--amp-strict=all")
            raise ValueError(f"{kind!r} is not one of all, {', '.join(STRICT_KINDS)}{hint}")
    return frozenset(kinds)


def snapshot(value: object) -> str:
    """Parse the mode in which dtype maps are used."""
    mode = str(value).strip()
    if mode not in SNAPSHOT_MODES:
        hint = before_a_path(mode, "--amp-snapshot=compare")
        raise ValueError(f"{mode!r} is not one of {', '.join(SNAPSHOT_MODES)}{hint}")
    return mode


def confirm(value: object) -> str | None:
    """Parse which answers a fresh process has to give as well; None leaves it to ``strict``."""
    answers = str(value).strip()
    if answers not in CONFIRMATIONS:
        raise ValueError(f"{answers!r} is not one of {', '.join(CONFIRMATIONS)}")
    return None if answers == "auto" else answers


def policy(value: object) -> str:
    """Parse whose rules of autocast a CPU follows."""
    name = str(value).strip()
    if name not in POLICIES:
        raise ValueError(f"{value!r} is not one of {', '.join(POLICIES)}")
    return name


def forecast(value: object) -> tuple[str, ...]:
    """Parse the names of GPUs, in any case; "all" means all that are known."""
    from pytest_amp.judge.devices import DEVICES

    given, known = words(value), {name.lower(): name for name in DEVICES}
    if given in (["all"], ["off"], []):
        return tuple(DEVICES) if given == ["all"] else ()
    for word in given:
        if word.lower() not in known:
            hint = before_a_path(word, "--amp-forecast=all")
            raise ValueError(f"{word!r} is not one of all, {', '.join(DEVICES)}{hint}")
    return tuple(dict.fromkeys(known[word.lower()] for word in given))


def preset(value: object) -> str:
    """Parse the name of a preset."""
    name = str(value).strip()
    if name not in PRESETS:
        raise ValueError(f"{value!r} is not one of {', '.join(PRESETS)}")
    return name


def text(value: object) -> str:
    """Return any text, without space at its ends."""
    return str(value).strip()


def allowed(value: object) -> dict[str, float]:
    """Parse a list such as ``speedup:10%,memory:5%`` into fractions by metric."""
    allowed: dict[str, float] = {}
    for word in words(value):
        found = re.fullmatch(_METRIC, word)
        if found is None or found[1] not in COMPARED_METRICS:
            raise ValueError(
                f"{word!r} is not METRIC:PCT with a metric of {', '.join(COMPARED_METRICS)}; "
                "write for example speedup:10%"
            )
        if found[1] in allowed:
            raise ValueError(f"{found[1]} is limited twice")
        drop = found[1] == "speedup"  # it can't drop by 100%
        allowed[found[1]] = numbers.number(found[2], DROP if drop else PERCENT) / 100
    return allowed


def written(value: Any) -> str:
    """Return a setting's value as one would write it on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "off"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={written(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(written, value))
    if isinstance(value, float):
        return units.number(value)
    return "none" if value is None else str(value)


def written_percents(value: Any) -> str:
    """Return fractions by metric as percentages: ``speedup:10%,memory:5%``."""
    if not isinstance(value, Mapping):
        return written(value)  # a stored report may hold anything
    return ",".join(f"{metric}:{100 * share:g}%" for metric, share in value.items())


def before_a_path(given: str, write: str) -> str:
    """Return a hint if an option without a value has taken the path after it for its value."""
    path = "/" in given or "\\" in given or given.endswith(".py")
    return f"; before a path write {write}" if path else ""
