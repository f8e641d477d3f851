"""The history as a pandas DataFrame."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from pytest_amp.storage import store
from pytest_amp.storage.columns import NUMBERS, TEXTS
from pytest_amp.storage.index import Index

if TYPE_CHECKING:
    import pandas


class BrokenHistory(UserWarning):
    """Part of a storage could not be read."""


def history(storage: str | os.PathLike[str] = store.DEFAULT) -> pandas.DataFrame:
    """The results that pytest-benchmark's storage holds, one row per test and run, oldest first.

    Args:
        storage: the folder of ``--benchmark-storage``, also as ``file://...``.

    Returns:
        A DataFrame with the columns of docs/reference/history.md, which tells their units. Texts
        are categories, numbers floats with NaN where there is none, `started` is UTC. Of an empty
        storage it has the same columns.

    Warns:
        BrokenHistory: for each file or report that could not be read, with its name.

    Raises:
        ValueError: the storage is no folder, such as Elasticsearch.
        NotADirectoryError: there is a file in its place.
    """
    with Index(store.folder(storage)) as index:
        for text in index.warnings:
            warnings.warn(text, BrokenHistory, stacklevel=2)
        return _frame(index)


def _frame(index: Index) -> pandas.DataFrame:
    import numpy
    import pandas

    table = index.table()
    numbers = numpy.frombuffer(table.numbers, dtype="d").reshape(-1, 1 + len(NUMBERS))
    texts = numpy.frombuffer(table.texts, dtype="i").reshape(-1, len(TEXTS))
    order = numpy.argsort(numbers[:, 0], kind="stable")
    started = pandas.to_datetime(numbers[order, 0], unit="s", utc=True)
    columns: dict[str, object] = {"started": started}
    for place, column in enumerate(TEXTS):
        ids, codes = numpy.unique(texts[order, place], return_inverse=True)
        missing = int(bool(ids.size) and ids[0] == 0)  # 0 stands for nothing, and sorts first
        columns[column.name] = pandas.Categorical.from_codes(
            codes - missing, [table.names[int(each)] for each in ids[missing:]]
        )
    for place, column in enumerate(NUMBERS):
        columns[column.name] = numbers[order, 1 + place]
    return pandas.DataFrame(columns)
