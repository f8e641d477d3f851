"""Where results come from: the run, its time, and what is checked out where the tests run."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# CI checks a commit out without its branch, and names the branch here. For a pull request most name
# one of its own, such as 12/merge: what came from a fork's main is not a result of main.
_CI_BRANCH = (
    "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "BUILDKITE_BRANCH", "CIRCLE_BRANCH",
    "BITBUCKET_BRANCH", "BRANCH_NAME", "BUILD_SOURCEBRANCHNAME",
)  # fmt: skip


def commit(root: Path) -> str | None:
    """The commit's hash; None where there is no git or no repository, as everywhere here."""
    return _git(root, "rev-parse", "HEAD")


def branch(root: Path) -> str | None:
    """The branch, by git or else by the CI system; None where neither knows one."""
    name = _git(root, "rev-parse", "--abbrev-ref", "HEAD")
    if name not in (None, "HEAD"):
        return name
    return next(filter(None, map(os.environ.get, _CI_BRANCH)), None)


def dirty(root: Path) -> bool | None:
    """Whether files differ from the commit's; what git does not track, as results, is no change."""
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
    """The time in UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def run_of(root: Path, started: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What identifies a run of pytest. `arguments`: those of its command line."""
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
    """The number of this process among those that train together; None without a launcher."""
    given = os.environ.get("RANK", "")
    return int(given) if given.isdigit() else None
