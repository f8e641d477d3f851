"""Draw two models side by side, as bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_amp import units
from pytest_amp.render import plots
from pytest_amp.results.training import perplexity
from pytest_amp.results.values import ArmRun, arm_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Figure(NamedTuple):
    """What one figure shows: a value of each model, and how it is written."""

    value: Callable[[ArmRun], float | None]
    written: Callable[[float], str]


def perplexity_of(arm: ArmRun) -> float | None:
    """Return the perplexity of the tail's loss; None if that is not finite."""
    return None if arm.tail_loss is None else perplexity(arm.tail_loss)


FIGURES: Mapping[str, _Figure] = {
    "Parameters": _Figure(lambda arm: arm.parameters, units.count),
    "Step time": _Figure(lambda arm: arm.step_time_s, units.duration),
    "Peak memory": _Figure(lambda arm: arm.peak_bytes, units.size),
    "Loss": _Figure(lambda arm: arm.tail_loss, units.number),
    "Perplexity": _Figure(perplexity_of, "{:.4g}".format),
}


def figures(arms: Mapping[str, ArmRun]) -> dict[str, str]:
    """Return, as SVG by title, a figure of everything that is known of two models; else nothing."""
    return {
        title: plots.drawn(partial(_bars, figure=FIGURES[title], arms=arms))
        for title in _there(arms)
    }


def save(path: Path, arms: Mapping[str, ArmRun]) -> None:
    """Draw all figures into one file; the ending of its name sets the format.

    Raises:
        ValueError: matplotlib does not write that format.
        OSError: the file can't be written.
    """
    with plots.on_paper():
        from matplotlib.figure import Figure

        titles = _there(arms)
        figure = Figure(figsize=(3.2 * len(titles), 2.0), layout="constrained")
        row = figure.subplots(1, len(titles), squeeze=False)[0]
        for axes, title in zip(row, titles, strict=True):
            axes.set_title(title)
            _bars(axes, FIGURES[title], arms)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _there(arms: Mapping[str, ArmRun]) -> list[str]:
    if any(arm.model is None for arm in arms.values()):
        return []
    return [
        title
        for title, figure in FIGURES.items()
        if arms and all(figure.value(arm) is not None for arm in arms.values())
    ]


def _bars(axes: Axes, figure: _Figure, arms: Mapping[str, ArmRun]) -> None:
    names = arm_names(arms)
    for place, arm in enumerate(("amp", "fp32")):
        value = figure.value(arms[arm]) or 0.0
        axes.barh([place], [value], color=plots.COLOURS[arm], height=0.6)
        axes.annotate(figure.written(value), (value, place), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks([0, 1], [names["amp"], names["fp32"]])
    axes.set_xticks([])
    axes.margins(x=0.35)
