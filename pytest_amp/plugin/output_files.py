"""The files that a run writes at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp import __version__
from pytest_amp.provenance import now, rank

if TYPE_CHECKING:
    from pytest_amp.results.report import AmpReport


def own_path(path: str) -> Path:
    """The path as given; ``x.rank1.json`` of a further rank, which must not overwrite it."""
    own, number = Path(path).expanduser(), rank()
    return own.with_name(f"{own.stem}.rank{number}{own.suffix}") if number else own


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


def write_json(
    path: Path, reports: Sequence[AmpReport], run: Mapping[str, Any], unasked: Sequence[str]
) -> None:
    """Write what ``--amp-json`` asks for."""
    from pytest_amp.render import json

    json.write(path, json.document(reports, run, now(), __version__, unasked))


def write_html(
    path: Path, config: pytest.Config, reports: Sequence[AmpReport], run: Mapping[str, Any]
) -> None:
    """Write what ``--amp-html`` asks for, with what the storage knows of the tests."""
    from pytest_amp.plugin import compare
    from pytest_amp.render import html
    from pytest_amp.storage import trends
    from pytest_amp.storage.key import key

    storage = None
    with contextlib.suppress(ValueError):  # as Elasticsearch, which is no folder
        storage = compare.storage_of(config)
    stored = {}
    if storage is not None:
        with contextlib.suppress(OSError):  # one that can't be read
            stored = trends.of_storage(storage, reports, run)
    results = [html.Result(each, stored.get(key(each.to_dict()))) for each in reports]
    html.write(path, html.page(results, run, now(), __version__))
