"""Two recipes as arms: healthy pairs raise nothing, and a recipe that is not followed is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.errors import AmpError
from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job
from pytest_amp.experiment.measure import measure
from pytest_amp.lab import prepare
from pytest_amp.lab.machine import abilities
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.global_state import GlobalState
from pytest_amp.lab.machine.torch_globals import is_tf32_on
from pytest_amp.progress import Progress
from pytest_amp.settings.precision import EMULATED, NATIVE
from pytest_amp.settings.resolved import resolve
from tests.helpers.lab import CPU, codes, train


class Unprepared:
    """An arm whose `prepare` is forgotten."""

    def __init__(self, arm) -> None:
        self._arm = arm

    def __getattr__(self, name):
        return getattr(self._arm, name)

    def prepare(self, model):
        return model


@pytest.fixture(autouse=True)
def _compiled_without_a_code_generator(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **_: compile_(call, backend="aot_eager"))


@pytest.fixture
def torchao():
    pytest.importorskip("torchao")


def transformer(arm, width=32):
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
    model = arm.prepare(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(4, 8, width)
    return train(arm, optimizer, lambda: F.mse_loss(model(x).float(), x))


def convolutions(arm):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16)
    )
    arm.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 16, (8,))
    return train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))


def run(setup, reference, candidate, **given):
    return measure(setup, reference=reference, candidate=candidate, static=True, **given)


@pytest.mark.parametrize("setup", [transformer, convolutions])
@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ("fp32", "bf16"),
        ("fp32", "fp16"),
        ("tf32", "bf16"),
        ("bf16", "bf16-true"),
        ("bf16", "fp8"),
        ("bf16", "fp8-rowwise"),
        ("bf16", "bf16+compile"),
        ("fp32", "bf16+channels_last"),
        ("bf16", "fp32"),
        ("fp16", "bf16"),
        ("fp16", "fp16+compile"),
        ("fp32", "fp32"),
    ],
)
def test_a_healthy_pair_raises_nothing(setup, reference, candidate, torchao) -> None:
    # Weights in bfloat16 lose updates. How far that moves a loss is what such a test is for.
    given = {"max_loss_diff": 0.1} if "true" in candidate else {}
    report = run(setup, reference, candidate, **given)
    assert codes(report) == []
    assert report.verdict == "pass"
    assert report.coverage is not None
    assert report.coverage > 0.9
    assert report.reference is report.fp32
    assert report.candidate is report.amp
    assert report.candidate.recipe == candidate
    assert report.reference.recipe == ("fp32" if reference == "tf32" else reference)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("bf16-true", "not one matmul, convolution or attention FLOP of the bf16-true arm ran in"),
        ("fp8", "the fp8 arm is to run in float8 (fp8), and not one tensor of it was"),
        (
            "bf16+compile",
            "the bf16+compile arm is to run compiled (bf16+compile), and torch.compile",
        ),
    ],
)
def test_a_candidate_whose_model_was_not_prepared(candidate, said, torchao) -> None:
    report = run(lambda arm: transformer(Unprepared(arm)), "bf16", candidate)
    assert codes(report) == ["AMP101"]
    assert report.findings[0].message.startswith(said)
    assert "arm.prepare(model)" in report.findings[0].message
    assert report.verdict == "fail"


@pytest.mark.parametrize("reference", ["bf16-true", "fp8", "bf16+compile"])
def test_a_reference_whose_model_was_not_prepared(reference, torchao) -> None:
    report = run(lambda arm: transformer(Unprepared(arm)), reference, "bf16")
    assert codes(report) == ["AMP004"]
    assert report.verdict == "fail"


def test_a_reference_that_enters_no_autocast() -> None:
    def setup(arm):
        model = nn.Linear(16, 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(8, 16)

        def step():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=arm.name == "amp"):
                loss = F.mse_loss(model(x), x)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    found = run(setup, "bf16", "fp16").findings
    assert [each.code for each in found] == ["AMP004"]
    assert "is to run in bf16 and ran in float32" in found[0].message


def test_layers_that_no_float8_kernel_takes_are_not_converted(torchao) -> None:
    report = run(lambda arm: transformer(arm, width=20), "bf16", "fp8")
    assert codes(report) == ["AMP101"]
    assert "whose features are multiples of 16" in report.findings[0].message


def test_layers_of_a_true_model_that_are_float32_after_all() -> None:
    def setup(arm):
        body, head = arm.prepare(nn.Linear(16, 16)), nn.Linear(16, 16)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
        x = torch.randn(8, 16)
        return train(arm, optimizer, lambda: F.mse_loss(head(body(x).float()), x))

    report = run(setup, "fp32", "bf16-true")
    assert codes(report) == ["AMP108"]
    assert "50% of the forward FLOPs ran in float32" in report.findings[0].message


def test_code_that_falls_back_to_eager() -> None:
    with torch.compiler.set_stance("force_eager"):
        report = run(transformer, "bf16", "bf16+compile")
    assert codes(report) == ["AMP101"]
    assert "torch.compile compiled nothing" in report.findings[0].message


def let_cudnn() -> None:
    torch.backends.cudnn.allow_tf32 = True


def let_cublas() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def choose_tf32() -> None:
    torch.set_float32_matmul_precision("high")


def choose_it_anew() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


SWITCHES = [let_cudnn, let_cublas, choose_tf32]
if hasattr(torch.backends, "fp32_precision"):
    SWITCHES += [choose_it_anew]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(("arms", "severity"), [(["fp32"], "error"), (["fp32", "amp"], "warning")])
def test_tf32_that_is_left_on_in_a_float32_reference(arms, severity, switch) -> None:
    def setup(arm):
        if arm.name in arms:
            switch()
        return transformer(arm)

    [finding] = run(setup, "fp32", "bf16").findings
    assert (finding.code, finding.severity) == ("AMP004", severity)
    assert "--amp-reference=tf32" in finding.message


@pytest.fixture
def _switches_as_before():
    state = GlobalState(Device(CPU))
    with state.preserved():
        yield


@pytest.mark.usefixtures("_switches_as_before")
@pytest.mark.parametrize("switch", SWITCHES[1:])
def test_tf32_of_the_process_is_put_aside_and_told(switch) -> None:
    seen = []

    def setup(arm):
        seen.append((arm.name, torch.get_float32_matmul_precision()))
        return transformer(arm)

    switch()
    assert is_tf32_on()
    report = run(setup, "fp32", "bf16")
    assert is_tf32_on()
    assert set(seen) == {("fp32", "highest"), ("amp", "highest")}
    assert codes(report) == []
    assert any("as in --amp-reference=tf32" in note for note in report.notes)


def test_tf32_is_put_in_force_for_the_arm_that_has_it(monkeypatch) -> None:
    there = abilities.Abilities("a GPU", tf32=True)
    monkeypatch.setattr("pytest_amp.experiment.run.abilities", lambda _: there)
    seen = set()

    def setup(arm):
        step = transformer(arm)

        def looking():
            cudnn = torch.backends.cudnn.allow_tf32
            seen.add((arm.name, torch.get_float32_matmul_precision(), cudnn))
            return step()

        return looking

    report = run(setup, "tf32", "bf16")
    assert seen == {("fp32", "high", True), ("amp", "highest", False)}
    assert (codes(report), report.reference.recipe) == ([], "tf32")


def test_float8_that_is_emulated_is_never_timed(torchao) -> None:
    report = measure(transformer, reference="bf16", candidate="fp8", min_speedup=1.2, max_time=0.1)
    gate = report.gate("speedup")
    assert (gate.verdict, gate.value) == ("not_gated", None)
    assert "float8 is emulated here" in gate.reason
    assert gate in report.unmeasured
    assert any("a CPU has no float8" in note for note in report.notes)


def test_a_recipe_that_can_t_run_here_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(abilities, "find_spec", lambda _: None)
    with pytest.raises(
        AmpError, match=r"fp8 can't run on cpu: float8 needs torchao.*another recipe"
    ):
        run(transformer, "bf16", "fp8")


def test_two_arms_alike_are_told() -> None:
    assert (
        "both arms run in bf16: they differ by chance alone"
        in run(transformer, "bf16", "bf16").notes
    )


def test_the_recipes_names_stand_where_a_report_is_read(torchao) -> None:
    text = run(transformer, "bf16", "fp8", max_loss_diff=1e-9, loss_atol=0).explain()
    assert "  bf16 -> fp8" in text
    assert "amp" not in text.replace("--amp", "").replace("pytest-amp", "")


def test_prepare_is_what_the_arms_share(monkeypatch) -> None:
    prepared = []
    monkeypatch.setattr(
        "pytest_amp.lab.arm.prepared",
        lambda *given: prepared.append(str(given[1])) or prepare.prepared(*given),
    )
    run(transformer, "fp32", "bf16-true")
    assert set(prepared) == {"fp32", "bf16-true"}


@pytest.mark.parametrize(("candidate", "timed"), [("fp8", True), ("fp8-rowwise", False)])
def test_float8_is_timed_where_its_own_kind_is_native(monkeypatch, candidate, timed) -> None:
    """As on an Ada GPU, which multiplies in float8 with one scale a tensor, and not with many."""
    pytest.importorskip("torchao")
    real = experiment.abilities
    ada = {"tensorwise": NATIVE, "rowwise": EMULATED}
    monkeypatch.setattr(experiment, "abilities", lambda at: replace(real(at), float8=ada))
    job = Job("test_it.py::test_step", lambda _: lambda: 1.0, Device(CPU),
              resolve([("cli", {"candidate": candidate, "reference": "bf16"})]))  # fmt: skip
    with experiment.laboratory(job, Progress()) as bench:
        assert (bench.untimed is None) == timed
