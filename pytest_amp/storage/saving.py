"""Save a run without overwriting another process's run."""

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
    """Let one process at a time save into `folder`.

    If no lock can be made there, go on without one.
    """
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, Timeout, NotImplementedError):
            stack.enter_context(FileLock(folder / ".amp.lock", timeout=_PATIENCE_S))
        yield


def saved_file(folder: Path, run_id: str) -> Path | None:
    """Return the file that the run was saved to; None if there is none.

    Only the newest files are searched, since a run that was just saved is among them.
    """
    needle = json.dumps(run_id).encode()
    for path in sorted(folder.glob("*.json"), key=_age, reverse=True)[:_NEWEST]:
        with contextlib.suppress(OSError, ValueError):
            data = path.read_bytes()
            if needle in data and _run_id(json.loads(data)) == run_id:
                return path
    return None


def keep(folder: Path, name: str, run_id: str, data: bytes) -> Path:
    """Save the run under a number and a name that nobody else has.

    Raises:
        OSError: the file can't be written.
    """
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
