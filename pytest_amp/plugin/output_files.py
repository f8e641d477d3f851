"""Write the files that options name, and the summary of the CI system, at the end of a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp import __version__, files
from pytest_amp.plugin.options import LEVELS
from pytest_amp.provenance import now, rank

if TYPE_CHECKING:
    from pytest_amp.render.annotations import Mark
    from pytest_amp.results.gaps import Gap
    from pytest_amp.results.report import AmpReport

# The file for a step's summary, as GitHub's runner names it.
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True)
class Seen:
    """What there is to write.

    Attributes:
        reports: the reports of the tests.
        run: what identifies this run of pytest.
        gaps: what the run did not answer.
        marks: returns what there is to say at lines of the project.
    """

    reports: Sequence[AmpReport]
    run: Mapping[str, Any]
    gaps: Sequence[Gap]
    marks: Callable[[], Sequence[Mark]]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The JSON report."""
        from pytest_amp.render import json

        return json.document(self.reports, self.run, now(), __version__, self.gaps)

    def markdown(self, most: int) -> bytes:
        """Return the summary in Markdown, of at most so many bytes."""
        from pytest_amp.render import markdown

        run = markdown.Run(self.run, self.gaps, self.document)
        return markdown.summary(self.reports, run, most).encode("utf-8", "backslashreplace")


class OutputFiles:
    """The files that are to be written, checked now and written at the end.

    Attributes:
        written: the files so far.

    Raises:
        pytest.UsageError: a path can't be written to, names a baseline that it would replace, or
            needs a package that is missing. This is better said now than after an hour of
            measurements.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.written: list[Path] = []
        self._wanted: list[tuple[str, Path, Callable[[Path, Seen], None]]] = [
            (option, path, write)
            for option, write in (
                ("--amp-json", _write_json),
                ("--amp-html", partial(_write_html, config)),
                ("--amp-md", _write_markdown),
                ("--amp-codequality", _write_code_quality),
            )
            if (path := _own_path(config, option)) is not None
        ]
        for option, path, _ in self._wanted:
            _refuse_what_would_fail(config, option, path)
        if (path := _step_summary(config)) is not None:
            self._wanted.append((STEP_SUMMARY, path, _add_to_summary))

    def write(self, see: Callable[[], Seen]) -> Iterator[str]:
        """Write the files, once.

        Args:
            see: returns what there is to write.

        Yields:
            A sentence for each file that could not be written.
        """
        wanted, self._wanted = self._wanted, []
        if not wanted:
            return
        seen = see()
        for name, path, write in wanted:
            try:
                write(path, seen)
            except OSError as error:
                yield f"{name} could not be written: {error}"
            else:
                self.written += [path] * (name != STEP_SUMMARY)


def _own_path(config: pytest.Config, option: str) -> Path | None:
    """Return the path that an option gives, checked; None without one.

    Further ranks write ``x.rank1.json`` and so on, so as not to overwrite the first rank's file.
    """
    given = config.getoption(option)
    if given is None:
        return None
    own, number = Path(given).expanduser(), rank()
    path = own.with_name(f"{own.stem}.rank{number}{own.suffix}") if number else own
    _require_writable(option, path)
    return path


def _step_summary(config: pytest.Config) -> Path | None:
    """Return the file for the step's summary; None if there is none, or it is switched off."""
    given = os.environ.get(STEP_SUMMARY)
    return Path(given) if given and config.option.amp_summary == "auto" and not rank() else None


def _refuse_what_would_fail(config: pytest.Config, option: str, path: Path) -> None:
    if option == "--amp-json":
        from pytest_amp.settings.resolved import resolve

        given = resolve([*config.stash[LEVELS]])
        if given.compare is not None:
            from pytest_amp.plugin import compare

            compare.refuse_overwriting(config, given, path)
    if option == "--amp-html":
        from pytest_amp.render import html

        if missing := html.missing():
            raise pytest.UsageError(f"--amp-html: {missing}")


def _require_writable(option: str, path: Path) -> None:
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


def _write_json(path: Path, seen: Seen) -> None:
    from pytest_amp.render import json

    json.write(path, seen.document)


def _write_html(config: pytest.Config, path: Path, seen: Seen) -> None:
    """Write the page, with what the storage knows of the tests."""
    from pytest_amp.plugin import compare
    from pytest_amp.render import html
    from pytest_amp.storage import trends
    from pytest_amp.storage.key import key

    storage = None
    with contextlib.suppress(ValueError):  # it may be Elasticsearch, and not a folder
        storage = compare.storage_of(config)
    stored = {}
    if storage is not None:
        with contextlib.suppress(OSError):  # it may not be readable
            stored = trends.of_storage(storage, seen.reports, seen.run)
    results = [html.Result(each, stored.get(key(each.to_dict()))) for each in seen.reports]
    html.write(path, html.page(results, seen.run, now(), __version__))


def _write_markdown(path: Path, seen: Seen) -> None:
    """Write the summary, of no more than what a comment on a pull request takes."""
    from pytest_amp.render.markdown import MOST_IN_A_COMMENT

    files.write(path, seen.markdown(MOST_IN_A_COMMENT))


def _write_code_quality(path: Path, seen: Seen) -> None:
    from pytest_amp.render import code_quality

    files.write(path, code_quality.encoded(seen.marks()))


def _add_to_summary(path: Path, seen: Seen) -> None:
    """Add to the step's summary, behind what earlier commands wrote, as much as GitHub takes.

    If that is not possible, the run is no worse for it: nobody asked for this file by name.
    """
    from pytest_amp.render.markdown import MOST_IN_A_SUMMARY

    if not (seen.reports or seen.gaps):
        return
    try:
        there = path.stat().st_size if path.exists() else 0
        text = seen.markdown(MOST_IN_A_SUMMARY - there)
        with path.open("ab") as file:
            file.write(b"\n" * bool(there and text) + text)
    except OSError as error:
        sys.stderr.write(f"\npytest-amp: {STEP_SUMMARY} could not be written: {error}\n")
