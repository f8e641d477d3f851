"""A saved run that no other process's run takes the place of."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pytest_amp import files

NUMBERED = re.compile(r"(\d{4,})_.*\.json")
_PATIENCE_S = 60.0
_NEWEST = 64


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """One process at a time saves into `folder`; without a lock where none can be made there."""
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, Timeout, NotImplementedError):
            stack.enter_context(FileLock(folder / ".amp.lock", timeout=_PATIENCE_S))
        yield


def kept(folder: Path, run_id: str) -> Path | None:
    """The file that holds all of that run; of the newest files, where it has to be."""
    needle = json.dumps(run_id).encode()
    for path in sorted(folder.glob("*.json"), key=_age, reverse=True)[:_NEWEST]:
        with contextlib.suppress(OSError, ValueError):
            data = path.read_bytes()
            if needle in data and _run_id(json.loads(data)) == run_id:
                return path
    return None


def keep(folder: Path, name: str, run_id: str, data: bytes) -> Path:
    """Write the run under a number and a name that nobody else has. OSError where it can't be."""
    names = (entry.name for entry in os.scandir(folder))
    numbers = [int(found[1]) for found in map(NUMBERED.fullmatch, names) if found]
    path = folder / f"{max(numbers, default=0) + 1:04}_{name}-{run_id[:8]}.json"
    files.write_new(path, data)
    return path


def _run_id(document: object) -> object:
    amp = document.get("amp") if isinstance(document, dict) else None
    run = amp.get("run") if isinstance(amp, dict) else None
    return run.get("id") if isinstance(run, dict) else None


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
