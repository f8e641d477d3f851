"""Parse thresholds, which are one number or a number per device, and resolve them on a device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from pytest_amp.settings.numbers import Range, number

DEVICE_TYPES = ("cuda", "rocm", "xpu", "mps", "cpu")
_ARCH = r"sm\d+"
# The names of processors. New accelerators get new names; these families have kept theirs. The
# pattern is not compiled here, because this module is loaded in every pytest run.
_PROCESSOR = (
    r"cpu|processor|xeon|epyc|ryzen|threadripper|opteron|core|pentium|celeron|atom|graviton|altra|"
    r"neoverse|cortex|power\d|x86|aarch|\W*(intel|amd|apple|arm)\W*$"
)


class DeviceNames(NamedTuple):
    """The names that a threshold can call a device by.

    Attributes:
        name: its full name, such as ``NVIDIA H100 80GB HBM3``.
        arch: its architecture, such as ``sm90``; None if it has none.
        type: its type, such as ``cuda``.
    """

    name: str
    arch: str | None
    type: str


class Threshold(NamedTuple):
    """A number for each of several devices.

    Attributes:
        by_device: the numbers by device key. A plain number has the key ``*``; None means that
            devices with this key are not gated.
    """

    by_device: Mapping[str, float | None]

    def on(self, device: DeviceNames) -> float | None:
        """Return the threshold in force on `device`; None if it is not gated.

        The most specific key wins: first the longest glob that matches the device's name, then its
        architecture, then its type, then ``*``.
        """
        key = self._key_for(device)
        return None if key is None else self.by_device[key]

    def names(self, device: DeviceNames) -> bool:
        """Return whether a key means `device`, whether it has a number or None."""
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
        """Return the threshold as the user would write it: a number, or a mapping."""
        if set(self.by_device) == {"*"}:
            return self.by_device["*"]
        return dict(self.by_device)


def threshold(value: object, valid: Range) -> Threshold:
    """Parse ``1.3``, ``{"cuda": 1.3, "*H100*": 1.6}`` or ``"cuda=1.3,*H100*=1.6"``.

    Raises:
        ValueError: a number is not in the range, or no device can have a key.
    """
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
    # Full names of devices have a space or a hyphen. A part of a name would match no device.
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
    """Return whether a key can only mean accelerators; a glob does, unless it names processors."""
    return key not in ("*", "cpu") and not (
        _is_glob(key) and re.search(_PROCESSOR, key, re.IGNORECASE)
    )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern.lower())
