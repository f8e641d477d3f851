"""The report of a whole training, as `amp_benchmark.train` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_amp.plugin.drawn_report import DrawnReport
from pytest_amp.results.training import best
from pytest_amp.results.values import arm_names

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TrainingReport(DrawnReport):
    """An `AmpReport` of a training, which also has its epochs.

    `training` has them by the arm's name, and `frame` as a table. `plot` draws losses, perplexity,
    gradient norm and memory by epoch.
    """

    @property
    def frame(self) -> pandas.DataFrame:
        """A row for each epoch of each arm.

        The columns are ``arm`` (a recipe's name if the recipes are not the usual ones), ``epoch``,
        ``train/loss``, ``train/perplexity``, ``train/accuracy``, the same of ``val``,
        ``learning_rate``, ``gradient_norm``, ``epoch_duration`` in seconds,
        ``samples_per_second``, ``system/memory_mb`` and ``system/gpu_utilization`` in percent.
        What was not measured is NaN.
        """
        import pandas

        names = arm_names(self.arms)
        rows = [
            {"arm": names[arm], **epoch.row()}
            for arm, epochs in self.training.items()
            for epoch in epochs
        ]
        frame = pandas.DataFrame(rows)
        numbers = frame.columns.difference(["arm", "epoch"])
        return frame.astype(dict.fromkeys(numbers, float))

    @property
    def best_epoch(self) -> int | None:
        """The amp arm's epoch with the lowest validation loss, from 1.

        Without an evaluation it is the one with the lowest training loss; None if no loss is
        finite.
        """
        return best(self.training["amp"])

    def _draw(self, path: Path) -> None:
        from pytest_amp.render import training_plots

        training_plots.save(path, self.training, self.arms)
