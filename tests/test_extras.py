"""What a feature says when the package that it needs is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from pytest_amp import AmpError, Arm, Recipe, extras
from pytest_amp.cli import main as cli
from pytest_amp.lab.machine.device import Device
from tests.test_project import PYPROJECT

QUICK = ("--amp-static", "--amp-steps=2", "-p", "no:asyncio")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Make the features believe that some packages are not installed."""

    def block(*packages: str) -> None:
        monkeypatch.setattr(
            extras, "find_spec", lambda name: None if name in packages else find_spec(name)
        )

    return block


def arm(recipe: str) -> Arm:
    return Arm("amp", Device(torch.device("cpu")), Recipe.parse(recipe))


@pytest.fixture
def step(project: pytest.Pytester) -> pytest.Pytester:
    project.makepyfile(
        test_it="""
import pytest
from pytest_amp import AmpError, Training

@pytest.mark.amp
def test_step(model, optimizer, batch):
    return model(batch[0]).square().mean()

def test_plots(amp_benchmark, setup):
    models = amp_benchmark.against(setup, setup, name="itself")
    with pytest.raises(AmpError, match="plots need matplotlib: pip install 'pytest-amp.html.'"):
        models.plot("models.svg")
"""
    )
    return project


def test_arm_loop(without) -> None:
    without("greenlet")
    expected = r"^arm\.loop needs greenlet: pip install 'pytest-amp\[loop\]'$"
    with pytest.raises(AmpError, match=expected):
        arm("bf16").loop(lambda tick: tick(0.0))


@pytest.mark.parametrize("recipe", ["fp8", "fp8-rowwise"])
def test_float8(without, recipe: str) -> None:
    without("torchao")
    expected = (
        rf"^float8 needs torchao: pip install 'pytest-amp\[fp8\]'; or choose .* than {recipe}$"
    )
    with pytest.raises(AmpError, match=expected):
        arm(recipe).prepare(torch.nn.Linear(16, 16))


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        (("jinja2",), "Jinja2"),
        (("matplotlib",), "matplotlib"),
        (("jinja2", "matplotlib"), "Jinja2 and matplotlib"),
    ],
)
def test_the_page(without, step, capsys, tmp_path, absent, named) -> None:
    expected = f"an HTML report needs {named}: pip install 'pytest-amp[html]'"
    without(*absent)
    if any(find_spec(name) is None for name in {"jinja2", "matplotlib"} - set(absent)):
        pytest.skip("more than that is missing")
    result = step.runpytest(*QUICK, "--amp-html=amp.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--amp-html: {expected}" in result.stderr.str()
    assert cli.main(["html", f"--storage={tmp_path}"]) == 2
    assert expected in capsys.readouterr().err


def test_plots(without, step, capsys, tmp_path) -> None:
    without("matplotlib")
    assert cli.main(["plot", f"--storage={tmp_path}", "-o", "h.svg"]) == 2
    assert "plots need matplotlib: pip install 'pytest-amp[html]'" in capsys.readouterr().err
    step.runpytest(*QUICK, "-k", "plots").assert_outcomes(passed=1)


def test_tune(without, step, capsys, monkeypatch) -> None:
    monkeypatch.chdir(step.path)
    without("optuna")
    assert cli.main(["tune", "test_it.py::test_step", "--", "-p", "no:asyncio"]) == 2
    assert "tune needs Optuna: pip install 'pytest-amp[tune]'" in "".join(capsys.readouterr())
    without("matplotlib")
    assert cli.main(["tune", "test_it.py::test_step", "--plots", "plots", "--"]) == 2
    assert "plots need matplotlib: pip install 'pytest-amp[tune]'" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("package", "named"), [("lightning", "Lightning"), ("transformers", "transformers")]
)
def test_telemetry(without, monkeypatch, package: str, named: str) -> None:
    from importlib import import_module

    module = import_module(f"pytest_amp.integrations.{package}")
    without(package)
    monkeypatch.setattr(module, "_PACKAGES", (), raising=False)  # a test has imported them
    expected = rf"^AmpTelemetry needs {named}: pip install 'pytest-amp\[frameworks\]'$"
    with pytest.raises(AmpError, match=expected):
        module.AmpTelemetry()


def test_an_extra_brings_what_it_is_named_for() -> None:
    brought = PYPROJECT["project"]["optional-dependencies"]
    for extra, packages in {
        "fp8": ["torchao"], "frameworks": ["lightning", "transformers"], "loop": ["greenlet"],
        "html": ["jinja2", "matplotlib"], "tune": ["matplotlib", "optuna"],
    }.items():  # fmt: skip
        names = [requirement.partition(">=")[0] for requirement in brought[extra]]
        assert set(packages) <= set(names)


def test_nothing_is_said_where_nothing_is_missing() -> None:
    assert extras.missing("html", "a page needs", "pytest", "torch") is None
