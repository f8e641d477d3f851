"""Draw how a whole training went, epoch by epoch, in both arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_amp.render import plots
from pytest_amp.results.training import Epoch
from pytest_amp.results.values import ArmRun, arm_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Epochs = Mapping[str, Sequence[Epoch]]


class _Figure(NamedTuple):
    """What one figure shows: its columns, each with its line's style, and its unit."""

    columns: Mapping[str, str]
    label: str
    from_zero: bool = False


_FIGURES: Mapping[str, _Figure] = {
    "Training and validation loss": _Figure({"train/loss": "--", "val/loss": "-"}, "loss"),
    "Perplexity": _Figure({"train/perplexity": "--", "val/perplexity": "-"}, "perplexity"),
    "Accuracy": _Figure({"train/accuracy": "--", "val/accuracy": "-"}, "accuracy"),
    "Gradient norm": _Figure({"gradient_norm": "-"}, "2-norm"),
    "Memory": _Figure({"system/memory_mb": "-"}, "MB", from_zero=True),
}


def figures(training: Epochs, arms: Mapping[str, ArmRun]) -> dict[str, str]:
    """Return, as SVG by title, a figure of everything that was measured."""
    names = arm_names(arms)
    return {
        title: plots.drawn(partial(_by_epoch, training=training, figure=_FIGURES[title],
                                   names=names))
        for title in _there(training)
    }  # fmt: skip


def save(path: Path, training: Epochs, arms: Mapping[str, ArmRun]) -> None:
    """Draw all figures into one file; the ending of its name sets the format.

    Raises:
        ValueError: matplotlib does not write that format.
        OSError: the file can't be written.
    """
    with plots.on_paper():
        from matplotlib.figure import Figure

        titles = _there(training)
        columns = min(len(titles), 3)
        rows = math.ceil(len(titles) / columns)
        figure = Figure(figsize=(4.4 * columns, 2.8 * rows), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for axes, title in zip(grid, titles, strict=False):
            axes.set_axis_on()
            axes.set_title(title)
            _by_epoch(axes, training, _FIGURES[title], arm_names(arms))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _there(training: Epochs) -> list[str]:
    return [
        title
        for title, figure in _FIGURES.items()
        if any(_curve(epochs, column) for epochs in training.values() for column in figure.columns)
    ]


def _curve(epochs: Sequence[Epoch], column: str) -> list[float]:
    """Return a column by epoch, NaN where it is missing; empty if it is missing everywhere."""
    found = [epoch.row()[column] for epoch in epochs]
    if all(value is None for value in found):
        return []
    return [math.nan if value is None else value for value in found]


def _by_epoch(axes: Axes, training: Epochs, figure: _Figure, names: Mapping[str, str]) -> None:
    for arm, epochs in training.items():
        for column, style in figure.columns.items():
            values = _curve(epochs, column)
            part = column.partition("/")[0]
            what = f", {part}" if part in ("train", "val") else ""
            if values:
                axes.plot(
                    [epoch.epoch for epoch in epochs], values, style, marker=".",
                    color=plots.COLOURS[arm], label=f"{names[arm]}{what}",
                )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(figure.label)
    axes.ticklabel_format(axis="y", useOffset=False)
    if figure.from_zero:
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    plots.whole_numbers(axes)
    axes.legend(fontsize=8)
