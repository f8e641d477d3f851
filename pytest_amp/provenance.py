"""Record where results come from: the run, its time, and what is checked out."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# CI systems check out a commit without its branch and name the branch in one of these. For a pull
# request most of them give a name such as 12/merge, so that results from a fork's main branch are
# not taken for results of main.
_CI_BRANCH = (
    "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "BUILDKITE_BRANCH", "CIRCLE_BRANCH",
    "BITBUCKET_BRANCH", "BRANCH_NAME", "BUILD_SOURCEBRANCHNAME",
)  # fmt: skip


def commit(root: Path) -> str | None:
    """Return the hash of the commit that is checked out.

    Like the other functions here, it returns None if git or the repository is missing.
    """
    return _git(root, "rev-parse", "HEAD")


def top(root: Path) -> str | None:
    """Return the top folder of the checkout."""
    return _git(root, "rev-parse", "--show-toplevel")


def branch(root: Path) -> str | None:
    """Return the branch that git or else the CI system names; None if neither knows one."""
    name = _git(root, "rev-parse", "--abbrev-ref", "HEAD")
    if name not in (None, "HEAD"):
        return name
    return next(filter(None, map(os.environ.get, _CI_BRANCH)), None)


def dirty(root: Path) -> bool | None:
    """Return whether tracked files differ from the commit.

    Untracked files do not count: results are often saved into the checkout.
    """
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def _git(root: Path, *arguments: str) -> str | None:
    import subprocess

    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def now() -> str:
    """Return the time in UTC, in ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def run_of(root: Path, started: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what identifies a run of pytest, as plain JSON.

    Args:
        root: the folder whose checkout the run belongs to.
        started: when the run began, as `now` writes it.
        arguments: the arguments of pytest's command line.
    """
    import shlex
    import uuid

    return {
        "id": uuid.uuid4().hex,
        "commit": commit(root),
        "branch": branch(root),
        "dirty": dirty(root),
        "started": started,
        "command": shlex.join(["pytest", *arguments]),
    }


def rank() -> int | None:
    """Return this process's rank among those that train together; None without a launcher."""
    given = os.environ.get("RANK", "")
    return int(given) if given.isdigit() else None
