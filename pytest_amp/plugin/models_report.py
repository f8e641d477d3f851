"""The report of two models side by side, as `amp_benchmark.against` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_amp.plugin.drawn_report import DrawnReport


@dataclass(frozen=True)
class ModelsReport(DrawnReport):
    """An `AmpReport` of two models under one recipe.

    `candidate` is the run of the test's own model, and `reference` the other's. `plot` draws both
    models' parameters, step time, memory, loss and perplexity as bars.
    """

    def _draw(self, path: Path) -> None:
        from pytest_amp.render import model_plots

        model_plots.save(path, self.arms)
