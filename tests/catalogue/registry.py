"""How a case is written down: a setup, under the rule that it is about."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pytest_amp.codes import CODES
from pytest_amp.results import AmpReport
from tests.laboratory import attempt

Setup = Callable[[Any], Callable[[], Any]]


@dataclass(frozen=True)
class Step:
    """A setup of the catalogue. `faulty`: whether its rule must speak. `options`: settings."""

    code: str
    name: str
    setup: Setup
    faulty: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    may_warn: tuple[str, ...] = ()

    def measured(self) -> AmpReport:
        """What pytest-amp says of it: static, on the CPU, in bfloat16 unless it asks otherwise."""
        return attempt(self.setup, **{"steps": 6, "dtype": "bfloat16", **self.options})


STEPS: list[Step] = []


def faulty(code: str, **options: Any) -> Callable[[Setup], Setup]:
    """A setup of which the rule must speak, and which no other rule calls an error."""
    return _registered(code, True, (), options)


def healthy(code: str, may_warn: tuple[str, ...] = (), **options: Any) -> Callable[[Setup], Setup]:
    """A setup that looks like the rule's fault and is none; `may_warn`: warnings it may raise."""
    return _registered(code, False, may_warn, options)


def _registered(
    code: str, is_faulty: bool, may_warn: tuple[str, ...], options: Mapping[str, Any]
) -> Callable[[Setup], Setup]:
    assert code in CODES

    def register(setup: Setup) -> Setup:
        name = setup.__name__.replace("_", " ")
        STEPS.append(Step(code, name, setup, is_faulty, options, may_warn))
        return setup

    return register


def load() -> list[Step]:
    """All steps of all files beside this one."""
    package = import_module("tests.catalogue")
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.startswith(("test_", "__", "registry", "steps")):
            import_module(f"tests.catalogue.{found.name}")
    return STEPS
