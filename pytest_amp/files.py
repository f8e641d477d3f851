"""Write files completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` so that a reader finds either all of it or what was there before.

    Missing directories are created, and a symbolic link is followed.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():  # a pipe or a terminal can't be replaced
        target.write_bytes(data)
        return
    with _written(target, data) as temporary:
        temporary.replace(target)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet.

    Raises:
        FileExistsError: there is such a file; it is left as it is.
    """
    with _written(path, data) as temporary:
        os.link(temporary, path)
        temporary.unlink()


@contextmanager
def _written(target: Path, data: bytes) -> Iterator[Path]:
    """Write `data` to a temporary file beside `target`, flushed to the disk.

    The file is removed if anything fails inside the block.
    """
    temporary = target.with_name(f".amp-{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:  # not mkstemp: its 0600 ignores the umask
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
