"""Write the files of ``--amp-json`` and ``--amp-html`` at the end of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp import __version__
from pytest_amp.plugin.options import LEVELS
from pytest_amp.provenance import now, rank

if TYPE_CHECKING:
    from pytest_amp.results.report import AmpReport


class OutputFiles:
    """The paths that ``--amp-json`` and ``--amp-html`` name, checked now and written at the end.

    Raises:
        pytest.UsageError: a path can't be written to, names a baseline that it would replace, or
            needs a package that is missing. This is better said now than after an hour of
            measurements.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.written: list[Path] = []
        self._json = _own_path(config, "--amp-json")
        if self._json is not None:
            from pytest_amp.settings.resolved import resolve

            given = resolve([*config.stash[LEVELS]])
            if given.compare is not None:
                from pytest_amp.plugin import compare

                compare.refuse_overwriting(config, given, self._json)
        self._html = _own_path(config, "--amp-html")
        if self._html is not None:
            from pytest_amp.render import html

            if missing := html.missing():
                raise pytest.UsageError(f"--amp-html: {missing}")

    def write(
        self, reports: Sequence[AmpReport], run: Callable[[], Mapping[str, Any]], unasked: list[str]
    ) -> Iterator[str]:
        """Write the files that were asked for, once.

        Args:
            reports: the reports of the tests.
            run: returns what identifies this run of pytest.
            unasked: the gates that no test was asked, a sentence each.

        Yields:
            A sentence for each file that could not be written.
        """

        def json_to(path: Path) -> None:
            _write_json(path, reports, run(), unasked)

        def html_to(path: Path) -> None:
            _write_html(path, self._config, reports, run())

        for option, path, write in (
            ("--amp-json", self._json, json_to),
            ("--amp-html", self._html, html_to),
        ):
            if path is None:
                continue
            try:
                write(path)
            except OSError as error:
                yield f"{option} could not be written: {error}"
            else:
                self.written.append(path)
        self._json = self._html = None


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


def _write_json(
    path: Path, reports: Sequence[AmpReport], run: Mapping[str, Any], unasked: Sequence[str]
) -> None:
    """Write what ``--amp-json`` asks for."""
    from pytest_amp.render import json

    json.write(path, json.document(reports, run, now(), __version__, unasked))


def _write_html(
    path: Path, config: pytest.Config, reports: Sequence[AmpReport], run: Mapping[str, Any]
) -> None:
    """Write what ``--amp-html`` asks for, with what the storage knows of the tests."""
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
            stored = trends.of_storage(storage, reports, run)
    results = [html.Result(each, stored.get(key(each.to_dict()))) for each in reports]
    html.write(path, html.page(results, run, now(), __version__))
