"""Draw how a tuning went: its history, and which choices go with which times."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def save(folder: Path, study: Any, each: str) -> Iterator[Path]:
    """Draw Optuna's plots of a study into a folder, and yield each file's path.

    Args:
        folder: where to.
        study: Optuna's study, whose values are in seconds.
        each: what takes that long: a step or an example.

    Raises:
        OSError: a file can't be written.
    """
    import matplotlib as mpl
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    name_of = f"ms per {each}"
    with warnings.catch_warnings(), mpl.rc_context({"backend": "agg"}):
        warnings.simplefilter("ignore")  # Optuna's plots by matplotlib are experimental
        for name, draw in (
            ("history", plots.plot_optimization_history),
            ("parallel-coordinate", plots.plot_parallel_coordinate),
        ):
            figure: Any = draw(study, target=_ms, target_name=name_of).figure
            figure.set_size_inches(11, 6)
            path = folder / f"{name}.png"
            figure.savefig(path, bbox_inches="tight", dpi=110)
            pyplot.close(figure)
            yield path


def _ms(trial: Any) -> float:
    return float(1000 * trial.value)
