"""How a case is written down: a setup, under the rule that it is about."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from pytest_amp.codes import CODES
from pytest_amp.lab.machine.device import choose
from pytest_amp.results.report import AmpReport
from tests.helpers.lab import attempt

Setup = Callable[[Any], Callable[[], Any]]


@dataclass(frozen=True)
class Step:
    """A setup of the catalogue. `faulty`: whether its rule must speak. `options`: settings.

    `on`: the kind of device that it needs. `may_warn`: warnings that a healthy one may raise.
    `gates`: whether its thresholds must be met, too; not where a rule looks at a missed one.
    """

    code: str
    name: str
    setup: Setup
    faulty: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    on: str = "cpu"
    may_warn: tuple[str, ...] = ()
    gates: bool = True

    @property
    def runs_here(self) -> bool:
        """Whether the device that it needs is there."""
        return self.on == "cpu" or torch.get_device_module(self.on).is_available()

    def measured(self) -> AmpReport:
        """What pytest-amp says of it: static, on the CPU, in bfloat16 unless it asks otherwise."""
        usual = {"device": choose(self.on), "steps": 6, "dtype": "bfloat16"}
        return attempt(self.setup, **{**usual, **self.options})


STEPS: list[Step] = []


def faulty(code: str, **given: Any) -> Callable[[Setup], Setup]:
    """A setup of which the rule must speak, and which no other rule calls an error."""
    return _registered(code, True, **given)


def healthy(code: str, **given: Any) -> Callable[[Setup], Setup]:
    """A setup that looks like the rule's fault and is none."""
    return _registered(code, False, **given)


def _registered(
    code: str,
    is_faulty: bool,
    on: str = "cpu",
    may_warn: tuple[str, ...] = (),
    gates: bool = True,
    **options: Any,
) -> Callable[[Setup], Setup]:
    assert code in CODES

    def register(setup: Setup) -> Setup:
        name = setup.__name__.replace("_", " ")
        STEPS.append(Step(code, name, setup, is_faulty, options, on, may_warn, gates))
        return setup

    return register


def load() -> list[Step]:
    """All steps of all files beside this one."""
    package = import_module("tests.catalogue")
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.startswith(("test_", "__", "registry", "steps")):
            import_module(f"tests.catalogue.{found.name}")
    return STEPS
