"""The user's line that an operator comes from."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch

import pytest_amp

_OURS_AND_TORCHS = tuple(
    os.path.join(path, "")  # noqa: PTH118 - strings are what frames have
    for path in (
        str(Path(torch.__file__).parent),
        str(Path(pytest_amp.__file__).parent),
        sysconfig.get_path("stdlib"),
    )
)
_SITE_PACKAGES = os.path.join(sysconfig.get_path("purelib"), "")  # noqa: PTH118


def location() -> str | None:
    """``models/net.py:42``: the innermost caller that is neither torch's nor ours nor Python's.

    A line of the user's own is preferred to one of an installed library.
    """
    frame = sys._getframe(1)
    library = None
    while frame is not None:
        file = frame.f_code.co_filename
        kind = _kind(file)
        if kind == "user":
            return f"{_shown(file)}:{frame.f_lineno}"
        if kind == "library" and library is None:
            library = f"{_shown(file)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return library


@lru_cache(maxsize=1024)
def _kind(file: str) -> str:
    if file.startswith(_SITE_PACKAGES) and not file.startswith(_OURS_AND_TORCHS):
        return "library"
    return "skipped" if file.startswith((*_OURS_AND_TORCHS, "<")) else "user"


@lru_cache(maxsize=1024)
def _shown(file: str) -> str:
    """Relative to here where it is below, and to the libraries' folder where it is in there."""
    for base in (os.path.join(str(Path.cwd()), ""), _SITE_PACKAGES):  # noqa: PTH118
        if file.startswith(base):
            return Path(file.removeprefix(base)).as_posix()
    return file
