"""The report of two models side by side, as `amp_benchmark.against` returns it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pytest_amp.results.report import AmpReport


@dataclass(frozen=True)
class ModelsReport(AmpReport):
    """An `AmpReport` of two models under one recipe.

    `candidate` is the run of the test's own model, and `reference` the other's.
    """

    @classmethod
    def of(cls, report: AmpReport) -> ModelsReport:
        """Return a report of two models with its plot."""
        return cls(**{each.name: getattr(report, each.name) for each in dataclasses.fields(report)})

    def plot(self, path: str | Path) -> None:
        """Draw both models' parameters, step time, memory, loss and perplexity as bars into a file.

        Args:
            path: the file; its ending sets the format: svg, png or pdf.

        Raises:
            AmpError: matplotlib is not installed.
            ValueError: matplotlib does not write that format.
            OSError: the file can't be written.
        """
        from pytest_amp.errors import AmpError
        from pytest_amp.render import html, model_plots

        if not html.available():
            raise AmpError(html.MISSING)
        model_plots.save(Path(path), self.arms)
