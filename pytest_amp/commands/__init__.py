"""The commands of ``pytest-amp`` that look at stored results and at the machine."""

from __future__ import annotations

FINE, REGRESSION, USAGE, INCONCLUSIVE, NO_BASELINE = range(5)
