"""The packages that only some features need; an extra of ours brings each of them."""

from __future__ import annotations

from importlib.util import find_spec

_CALLED = {"jinja2": "Jinja2", "lightning": "Lightning", "optuna": "Optuna"}


def missing(extra: str, feature: str, *packages: str) -> str | None:
    """Return what to say if a package that a feature needs is not installed; None if all are.

    Args:
        extra: the extra that brings the packages.
        feature: what needs them, with its verb, such as ``"plots need"``.
        packages: the names by which they are imported.
    """
    absent = [_CALLED.get(name, name) for name in packages if find_spec(name) is None]
    if not absent:
        return None
    return f"{feature} {' and '.join(absent)}: pip install 'pytest-amp[{extra}]'"
