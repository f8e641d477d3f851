"""What identifies the code that was tested."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_amp import provenance


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in provenance._CI_BRANCH:
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "-b", "topic/1")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    return tmp_path


def test_a_checkout_has_a_commit_and_a_branch_and_may_be_changed(root: Path) -> None:
    assert len(provenance.commit(root) or "") == 40
    assert provenance.branch(root) == "topic/1"
    assert provenance.dirty(root) is False
    (root / "a").write_text("2")
    assert provenance.dirty(root) is True


def test_a_detached_head_is_of_the_branch_that_ci_names(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI_COMMIT_REF_NAME", "nightly")
    assert provenance.branch(root) == "topic/1"
    git(root, "checkout", "--detach")
    assert provenance.branch(root) == "nightly"
    monkeypatch.setenv("CI_COMMIT_REF_NAME", "")
    assert provenance.branch(root) is None


def test_a_folder_without_git_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for of in (provenance.commit, provenance.branch, provenance.dirty):
        assert of(tmp_path) is None
