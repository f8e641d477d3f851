"""A threshold is one number, or a number per device: parsed once, resolved where it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import NamedTuple

DEVICE_TYPES = ("cuda", "rocm", "xpu", "mps", "cpu")
_ARCH = r"sm\d+"
# How processors are called. New accelerators get new names, these families have kept theirs.
# It is not compiled here, because this module is loaded in every pytest run.
_PROCESSOR = (
    r"cpu|processor|xeon|epyc|ryzen|threadripper|opteron|core|pentium|celeron|atom|graviton|altra|"
    r"neoverse|cortex|power\d|x86|aarch|\W*(intel|amd|apple|arm)\W*$"
)


class DeviceNames(NamedTuple):
    """What a device answers to: ``NVIDIA H100 80GB HBM3``, ``sm90`` (or None), ``cuda``."""

    name: str
    arch: str | None
    type: str


class Threshold(NamedTuple):
    """Numbers by device key; a plain number stands under ``*``. None unsets it for that key."""

    by_device: Mapping[str, float | None]

    def on(self, device: DeviceNames) -> float | None:
        """The threshold in force on `device`; the most specific key wins, None where none names it.

        The order: a glob on the device's name (the longest that matches), then its architecture,
        then its type, then ``*``.
        """
        key = self._key_for(device)
        return None if key is None else self.by_device[key]

    def names(self, device: DeviceNames) -> bool:
        """Whether a key answers to `device`, be it with a number or to unset it."""
        return self._key_for(device) is not None

    @property
    def gated(self) -> tuple[str, ...]:
        """The device keys that have a number."""
        return tuple(key for key, number in self.by_device.items() if number is not None)

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The device keys with a number that can only mean an accelerator."""
        return tuple(key for key in self.gated if _is_accelerators(key))

    def _key_for(self, device: DeviceNames) -> str | None:
        globs = [key for key in self.by_device if _is_glob(key) and _matches(device.name, key)]
        keys = (*sorted(globs, key=len, reverse=True), device.arch or "", device.type, "*")
        return next((key for key in keys if key in self.by_device), None)

    def as_json(self) -> float | dict[str, float | None] | None:
        """As the user would write it: a number, or a mapping."""
        if set(self.by_device) == {"*"}:
            return self.by_device["*"]
        return dict(self.by_device)


class Range(NamedTuple):
    """The numbers that make sense, and the sentence that says so."""

    low: float
    high: float
    low_included: bool
    high_included: bool
    says: str

    def holds(self, value: float) -> bool:
        """Whether `value` is one of them."""
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return math.isfinite(value) and above and below


def number(value: object, valid: Range) -> float:
    """A finite number in range, from a Python number or its text."""
    parsed = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            parsed = float(value)
    if not valid.holds(parsed):
        raise ValueError(f"{value!r} is not {valid.says}")
    return parsed


def threshold(value: object, valid: Range) -> Threshold:
    """Parse ``1.3``, ``{"cuda": 1.3, "*H100*": 1.6}`` or ``"cuda=1.3,*H100*=1.6"``."""
    entries: Mapping[object, object]
    if isinstance(value, Mapping):
        entries = value
        if not entries:
            raise ValueError("an empty mapping gates nothing; write none to unset it")
    elif isinstance(value, str) and "=" in value:
        entries = dict(_pair(part) for part in value.split(","))
    else:
        entries = {"*": value}
    return Threshold(
        {
            _key(key): None if _is_none(each) else number(each, valid)
            for key, each in entries.items()
        }
    )


def _pair(part: str) -> tuple[str, str]:
    key, separator, value = part.rpartition("=")
    if not separator:
        raise ValueError(f"{part.strip()!r} is not DEVICE=NUMBER")
    return key.strip(), value.strip()


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() == "none")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"the device key {key!r} is not text")
    named = key == "*" or key in DEVICE_TYPES or re.fullmatch(_ARCH, key)
    # A device's full name has a space or a hyphen in it; a part of the name would match nothing.
    if not named and not set(key) & set("*?[ -"):
        glob = "*H100*" if key == key.lower() else f"*{key}*"
        raise ValueError(
            f"no device answers to {key!r}; valid keys are {', '.join(DEVICE_TYPES)}, an "
            f"architecture such as sm90, a glob on the device's name such as {glob}, and *"
        )
    return key


def _is_glob(key: str) -> bool:
    return key != "*" and key not in DEVICE_TYPES and not re.fullmatch(_ARCH, key)


def _is_accelerators(key: str) -> bool:
    """A glob means one unless it is how a processor is called."""
    return key not in ("*", "cpu") and not (
        _is_glob(key) and re.search(_PROCESSOR, key, re.IGNORECASE)
    )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern.lower())
