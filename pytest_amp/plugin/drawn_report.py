"""What the reports share that can be drawn into a file."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pytest_amp.results.report import AmpReport

R = TypeVar("R", bound="DrawnReport")


@dataclass(frozen=True)
class DrawnReport(AmpReport):
    """An `AmpReport` with a plot of its own."""

    @classmethod
    def of(cls: type[R], report: AmpReport) -> R:
        """Return a report with what this class adds to it."""
        return cls(**{each.name: getattr(report, each.name) for each in dataclasses.fields(report)})

    @abstractmethod
    def _draw(self, path: Path) -> None:
        """Draw into a file."""

    def plot(self, path: str | Path) -> None:
        """Draw all figures into a file.

        Args:
            path: the file; its ending sets the format: svg, png or pdf.

        Raises:
            AmpError: matplotlib is not installed.
            ValueError: matplotlib does not write that format.
            OSError: the file can't be written.
        """
        from pytest_amp import extras
        from pytest_amp.errors import AmpError

        if missing := extras.missing("html", "plots need", "matplotlib"):
            raise AmpError(missing)
        self._draw(Path(path))
