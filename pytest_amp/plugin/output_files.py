"""The files that a run writes at its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def own_path(path: str) -> Path:
    """The path as given; ``x.rank1.json`` of a further rank, which must not overwrite it."""
    own, rank = Path(path).expanduser(), os.environ.get("RANK", "0")
    return own if rank == "0" else own.with_name(f"{own.stem}.rank{rank}{own.suffix}")


def require_writable(option: str, path: Path) -> None:
    """Raise UsageError now rather than lose an hour of measurements at the end."""
    from tempfile import TemporaryFile

    try:
        if path.is_dir():
            raise IsADirectoryError("it is a directory")
        if path.exists() and not path.is_file():  # a pipe is written to and not replaced
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise pytest.UsageError(f"{option}={path}: can't write there: {error}") from None
