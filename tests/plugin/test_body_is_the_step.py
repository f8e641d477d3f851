"""The test's body as the step: what the fixtures are copied for, and what is done with them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler

from tests.helpers.project import STEP, measure

HEAD = """
import copy, dataclasses, threading, types
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

SEEN = []  # what the body saw, in order; a global is not copied

def under_amp():
    return torch.is_autocast_enabled("cpu")
"""


def losses(report: dict[str, Any], arm: str = "fp32", key: str = "loss") -> list[float]:
    values: list[float] = report["arms"][arm]["losses"][key]
    return values


def falls(values: list[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def measured(project: pytest.Pytester, source: str, *arguments: str) -> dict[str, Any]:
    """The reports of the tests in `source`, all of which pass, without a warning."""
    project.makepyfile(test_it=HEAD + source)
    result, reports = measure(project, "--amp-steps=4", "-W", "error", *arguments)
    counted = result.parseoutcomes()
    assert set(counted) == {"passed"}, counted
    return reports


# Each arm has a copy of its own.


def test_the_arms_train_copies_and_the_originals_stay_as_they_were(
    project: pytest.Pytester,
) -> None:
    reports = measured(
        project,
        """
@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[2].weight.grad = torch.ones(4, 8)
    before = copy.deepcopy(model.state_dict())
    yield model
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model[2].weight.grad, torch.ones(4, 8))
    assert model[0].weight.grad is None

@pytest.fixture
def optimizer(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    yield optimizer
    assert not optimizer.state
    assert optimizer.param_groups[0]["params"][0] is model[0].weight

@pytest.fixture
def batch():
    inputs = torch.randn(4, 8, requires_grad=True)
    yield inputs, torch.arange(4)
    assert inputs.grad is None

@pytest.mark.amp
def test_step(model, optimizer, batch):
    SEEN.append(model)
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    return F.cross_entropy(model(batch[0]), batch[1])

def test_every_build_had_its_own():
    # Parity, inspection, the noise floor, and what rounding alone does to small gradients.
    assert len({id(model) for model in SEEN}) in (5, 6)
""",
    )
    assert losses(reports["test_step"])[0] == pytest.approx(
        losses(reports["test_step"], "amp")[0], rel=0.02
    )
    assert falls(losses(reports["test_step"]))
    assert falls(losses(reports["test_step"], "amp"))


def test_tests_that_share_a_model_start_from_the_same_weights(project: pytest.Pytester) -> None:
    reports = measured(
        project,
        """
@pytest.fixture(scope="module")
def model():
    return nn.Linear(8, 4)

@pytest.mark.amp
@pytest.mark.parametrize("n", [1, 2])
def test_step(model, optimizer, batch, n):
    return F.cross_entropy(model(batch[0]), batch[1])
""",
    )
    assert losses(reports["test_step[1]"]) == losses(reports["test_step[2]"])


ON_AN_INSTANCE = """
class TestStep:
    rate = 0.1

    {hook}
        self.model = nn.Linear(8, 4)
        self.original = self.model.weight.detach().clone()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.rate)
{teardown}
    @pytest.mark.amp
    def test_step(self, batch):
        assert isinstance(self, TestStep)
        self.steps = getattr(self, "steps", 0) + 1
        SEEN.append(self.steps)
        return F.cross_entropy(self.loss_input(batch), batch[1])

    def loss_input(self, batch):
        return self.model(batch[0])

def test_each_build_counted_its_own_steps():
    parity = [1, 2, 3, 4]
    assert SEEN == [*parity, *parity, *[1, 2], *[1, 2, 3], *parity]  # each inspection in between
"""
AFTERWARDS = """
        assert torch.equal(self.model.weight, self.original)
        assert self.model.weight.grad is None
        assert not hasattr(self, "steps")
"""


@pytest.mark.parametrize(
    ("hook", "teardown"),
    [
        ("def setup_method(self):", "    def teardown_method(self):"),
        ("@pytest.fixture(autouse=True)\n    def _build(self):", "        yield"),
    ],
    ids=["setup_method", "fixture"],
)
def test_a_method_s_self_is_copied_with_what_it_holds(
    project: pytest.Pytester, hook: str, teardown: str
) -> None:
    source = ON_AN_INSTANCE.format(hook=hook, teardown=teardown + AFTERWARDS)
    reports = measured(project, source)
    assert falls(losses(reports["TestStep::test_step"]))


def test_self_and_fixtures_are_copied_together(project: pytest.Pytester) -> None:
    reports = measured(
        project,
        """
@pytest.mark.amp
class TestStep:
    @pytest.fixture(autouse=True)
    def _attach(self, model):
        self.model = model

    def test_step(self, model, optimizer, batch):
        assert self.model is model
        return F.cross_entropy(self.model(batch[0]), batch[1])

    @staticmethod
    def test_static(model, optimizer, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    @classmethod
    def test_class(cls, model, optimizer, batch):
        assert cls is TestStep
        return F.cross_entropy(model(batch[0]), batch[1])
""",
    )
    assert len(reports) == 3
    assert all(falls(losses(report)) for report in reports.values())


def test_parameters_reach_the_body_directly_and_through_fixtures(project: pytest.Pytester) -> None:
    reports = measured(
        project,
        """
@pytest.fixture
def model(request):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, request.param), nn.Linear(request.param, 4))

@pytest.mark.amp
@pytest.mark.parametrize("model", [2, 3], indirect=True)
@pytest.mark.parametrize("weight", [1.0, torch.tensor(2.0)])
def test_step(model, optimizer, batch, weight, unit=1):
    return F.cross_entropy(model(batch[0]), batch[1]) * weight * unit
""",
    )
    assert len(reports) == 4
    once, twice = (
        losses(reports[name])[0] for name in ("test_step[1.0-2]", "test_step[weight1-2]")
    )
    assert twice == pytest.approx(2 * once)


HOLDERS = {
    "dataclass": """
@dataclasses.dataclass
class State:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple
""",
    "frozen dataclass with slots": """
@dataclasses.dataclass(frozen=True, slots=True)
class State:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple
""",
    "namespace": "State = types.SimpleNamespace",
    "namespace in a list in a dict": """
class Keys(dict):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return vars(self["held"][0])[name]

def State(**values):
    return Keys(held=[types.SimpleNamespace(**values)])
""",
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_a_fixture_holds_is_found_and_trained(project: pytest.Pytester, holder: str) -> None:
    reports = measured(
        project,
        HOLDERS[holder]
        + """
@pytest.fixture
def state(model, optimizer, batch):
    before = model.weight.detach().clone()
    yield State(model=model, optimizer=optimizer, batch=batch)
    assert torch.equal(model.weight, before)

@pytest.mark.amp
def test_step(state):
    inputs, targets = state.batch
    return F.cross_entropy(state.model(inputs), targets)
""",
    )
    assert falls(losses(reports["test_step"]))


# Optimizers and schedulers.

TWO_MODELS = """
@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Linear(8, 8)

@pytest.fixture
def decoder():
    return nn.Linear(8, 4)

@pytest.fixture
def encoder_optimizer(encoder):
    return torch.optim.SGD(encoder.parameters(), lr=0.1)

@pytest.fixture
def optimizers(encoder_optimizer, decoder):
    return {"encoder": encoder_optimizer, "decoder": torch.optim.Adam(decoder.parameters())}

@pytest.mark.amp
def test_step(encoder, decoder, batch, optimizers, encoder_optimizer):
    SEEN.append([each.weight.square().sum().item() for each in (encoder, decoder)])
    return F.cross_entropy(decoder(encoder(batch[0]).relu()), batch[1])

@pytest.mark.amp
def test_once(encoder, decoder, batch, optimizers):
    return F.cross_entropy(decoder(encoder(batch[0]).relu()), batch[1])

def test_each_weight_moved_in_each_step():
    build = SEEN[:4]
    assert len({one for one, _ in build}) == len({two for _, two in build}) == 4
"""


def test_several_optimizers_each_step_once(project: pytest.Pytester) -> None:
    reports = measured(project, TWO_MODELS)
    # one of them is in two of the fixtures of test_step, and steps no more often for it
    assert losses(reports["test_step"]) == losses(reports["test_once"])


def test_gradients_do_not_add_up_over_the_steps(project: pytest.Pytester) -> None:
    reports = measured(project, STEP)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.ones(4, 8)), torch.arange(4))
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses(reports["test_step"]) == pytest.approx(expected)


SCHEDULERS = {
    "StepLR": "StepLR(optimizer, 2, gamma=0.5)",
    "LambdaLR": "LambdaLR(optimizer, lambda epoch: 0.5**epoch)",
    "OneCycleLR": "OneCycleLR(optimizer, max_lr=0.1, total_steps=20)",
    "SequentialLR": (
        "SequentialLR(optimizer, [ConstantLR(optimizer, 0.5), ExponentialLR(optimizer, 0.9)], [2])"
    ),
    "ReduceLROnPlateau": "ReduceLROnPlateau(optimizer, mode='max', patience=0, factor=0.5)",
}


def rates_by_hand(expression: str, steps: int) -> list[float]:
    """The learning rate of each step in a plain loop."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = eval(expression, {**vars(lr_scheduler), "optimizer": optimizer})
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.ones(4, 8)), torch.arange(4))
        loss.backward()
        optimizer.step()
        scheduler.step(*([loss.item()] if "Plateau" in expression else []))
    return rates


SCHEDULED = """
from torch.optim.lr_scheduler import *

@pytest.fixture
def scheduler(optimizer):
    scheduler = {expression}
    before = scheduler.state_dict()["last_epoch"]
    yield scheduler
    assert scheduler.last_epoch == before

@pytest.mark.amp{marker}
def test_step(model, optimizer, scheduler, batch):
    SEEN.append((under_amp(), optimizer.param_groups[0]["lr"]))
    return F.cross_entropy(model(batch[0]), batch[1]) * {factor}

def test_seen():
    print("SEEN =", SEEN)
"""


def rates_seen(project: pytest.Pytester, **how: str) -> tuple[dict[str, Any], list[Any]]:
    """The reports, and per step whether it ran under amp and its learning rate."""
    source = HEAD + SCHEDULED.format(**{"marker": "", "factor": "1", **how})
    project.makepyfile(test_it=source)
    of_torch_2_6 = "ignore:The epoch parameter"  # which warns of its own use of it
    result, reports = measure(project, "--amp-steps=8", "-W", "error", "-W", of_torch_2_6, "-s")
    result.assert_outcomes(passed=2)
    line = next(line for line in result.outlines if "SEEN = " in line)
    return reports, eval(line.partition("SEEN = ")[2])


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch 2.6 warns of its own use
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_moves_once_per_step(project: pytest.Pytester, name: str) -> None:
    _, seen = rates_seen(project, expression=SCHEDULERS[name])
    expected = rates_by_hand(SCHEDULERS[name], 9)
    assert len(set(expected)) > 1
    amp, fp32, floor = seen[:8], seen[8:16], seen[-8:]
    inspected = seen[16:-8]
    assert {enabled for enabled, _ in amp} == {True}
    assert {enabled for enabled, _ in fp32 + floor} == {False}
    for build in (amp, fp32, floor, inspected[:2], inspected[2:]):
        rates = [rate for _, rate in build]
        assert rates == pytest.approx(expected[: len(rates)])


def test_a_scheduler_waits_while_steps_are_skipped(project: pytest.Pytester) -> None:
    """The gradients overflow float16 until the scale has come down; fp32 leaves out the same."""
    reports, seen = rates_seen(
        project,
        expression="ExponentialLR(optimizer, 0.5)",
        marker='(dtype="float16", ignore={"AMP207": "on purpose"})',
        factor="64",
    )
    skipped = reports["test_step"]["arms"]["amp"]["skipped_steps"]
    assert 1 <= skipped <= 6
    expected = [0.01] * skipped + [0.01 * 0.5**n for n in range(8 - skipped)]
    for build in (seen[:8], seen[8:16]):
        assert [rate for _, rate in build] == pytest.approx(expected)


# What the body returns.


def test_several_losses_are_trained_on_together_and_compared_one_by_one(
    project: pytest.Pytester,
) -> None:
    reports = measured(
        project,
        STEP.replace("test_step", "test_sum").replace("])\n", "]) * 2\n")
        + """
@pytest.mark.amp
def test_dict(model, optimizer, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return {"one": loss, "other": loss.clone()}
""",
    )
    for arm in ("fp32", "amp"):
        assert set(reports["test_dict"]["arms"][arm]["losses"]) == {"one", "other"}
    one, other = (losses(reports["test_dict"], key=key) for key in ("one", "other"))
    assert one == other
    # the step went along the gradient of both
    assert [2 * loss for loss in one] == pytest.approx(losses(reports["test_sum"]))


def test_parity_is_judged_for_each_loss(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=HEAD
        + """
@pytest.mark.amp
def test_dict(model, optimizer, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return {"alike": loss, "apart": loss * (2 if under_amp() else 1)}
"""
    )
    result, reports = measure(project)
    result.assert_outcomes(failed=1)
    gates = [gate for gate in reports["test_dict"]["gates"] if gate["name"] == "loss_diff"]
    assert [gate["verdict"] for gate in gates] == ["fail"]
    assert "'apart'" in gates[0]["reason"]
    assert "alike" not in gates[0]["reason"]


# What is not copied.


def test_pytest_s_own_fixtures_are_the_test_s_own(project: pytest.Pytester) -> None:
    measured(
        project,
        """
import logging, os

@pytest.fixture
def own(request, tmp_path, capsys, monkeypatch, caplog, recwarn, pytestconfig, cache):
    return threading.Lock()  # not copyable, and not asked for by the test

@pytest.mark.amp
def test_step(
    model, optimizer, batch, request, tmp_path, capsys, monkeypatch, caplog, recwarn,
    pytestconfig, cache, record_property,
):
    assert request.node.name == "test_step"
    assert request.config is pytestconfig
    with (tmp_path / "steps").open("a") as file:
        file.write("x")
    print("said")
    assert capsys.readouterr().out == "said\\n"
    logging.getLogger().warning("logged")
    SEEN.append(len(caplog.records))
    monkeypatch.setattr(threading, "leaked", True, raising=False)
    record_property("steps", len(SEEN))
    return F.cross_entropy(model(batch[0]), batch[1])

def test_one_file_and_one_log_for_all_steps(tmp_path):
    steps = next(tmp_path.parent.glob("test_step*/steps")).read_text()
    assert len(steps) == len(SEEN) == 17
    assert SEEN == list(range(1, 18))

def test_what_the_body_patched_is_put_back_after_the_test():
    assert not hasattr(threading, "leaked")
""",
    )


def test_what_the_test_does_not_ask_for_is_left_alone(project: pytest.Pytester) -> None:
    measured(
        project,
        """
@pytest.fixture(autouse=True)
def connection():
    lock = threading.Lock()
    with lock:
        yield lock
        assert lock.locked()

@pytest.fixture
def server():
    return threading.Lock()

@pytest.fixture
def data(connection, batch):
    assert connection.locked()
    return batch

@pytest.mark.amp
@pytest.mark.usefixtures("server")
def test_step(model, optimizer, data):
    return F.cross_entropy(model(data[0]), data[1])
""",
    )


# Where it runs.


def test_a_body_that_needs_cuda_is_skipped_without_it(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    project.makepyfile(test_it=STEP.replace("batch)", "batch, cuda_device)"))
    result, reports = measure(project)
    result.assert_outcomes(skipped=1)
    assert reports["test_step"]["verdict"] == "skipped"
    assert "needs a CUDA device" in reports["test_step"]["skip_reason"]


def test_it_runs_where_the_fixtures_put_the_model(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there is a GPU that arms would be built on if they could choose."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    reports = measured(project, STEP)
    assert reports["test_step"]["environment"]["device_type"] == "cpu"
    [note] = reports["test_step"]["notes"]
    assert "where the fixtures' parameters are, although cuda:0 is available" in note


DRAWN = """
import random
import numpy, pytest, torch

@pytest.fixture
def drawn():
    return random.random(), numpy.random.rand(), torch.rand(1).item()

SEEN = []

{mark}
def test_first(drawn, model, optimizer):
    SEEN.append(drawn)
    return model(torch.ones(4, 8)).square().mean()

@pytest.mark.amp
def test_second(drawn, model, optimizer):
    SEEN.append(drawn)
    return model(torch.ones(4, 8)).square().mean()

def test_same():
    assert len(set(SEEN)) == {different}
"""


def test_fixtures_are_made_from_the_seed(project: pytest.Pytester) -> None:
    for mark, different in (("@pytest.mark.amp", 1), ("@pytest.mark.amp(seed=1)", 2)):
        project.makepyfile(test_it=DRAWN.format(mark=mark, different=different))
        project.runpytest("--amp-static", "--amp-steps=2").assert_outcomes(passed=3)


BETWEEN = """
import random
import numpy, pytest, torch

def seed():
    random.seed(7), numpy.random.seed(7), torch.manual_seed(7)

def draw():
    return random.random(), numpy.random.rand(), torch.rand(1).item()

def test_before():
    seed()

@pytest.mark.amp
def test_step(model, optimizer):
    return model(torch.ones(4, 8)).square().mean()

def test_after():
    drawn = draw()
    seed()
    assert drawn == draw()
"""


def test_other_tests_draw_as_if_there_were_no_amp_tests(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=BETWEEN)
    project.runpytest("--amp-static", "--amp-steps=2").assert_outcomes(passed=3)


RESEEDING = """
import itertools, random
DRAWS = itertools.count()

def pytest_runtest_setup(item):
    random.seed(next(DRAWS))  # as plugins do that shuffle
"""


def test_another_plugin_s_seed_is_not_the_fixtures(project: pytest.Pytester) -> None:
    project.makepyfile(reseeding=RESEEDING)
    project.syspathinsert()
    project.makepyfile(test_it=DRAWN.format(mark="@pytest.mark.amp", different=1))
    result = project.runpytest("-p", "reseeding", "--amp-static", "--amp-steps=2")
    result.assert_outcomes(passed=3)


def test_a_teardown_that_raises_leaves_the_random_numbers_as_they_were(
    project: pytest.Pytester,
) -> None:
    broken = """
@pytest.fixture
def broken():
    yield
    raise RuntimeError("torn")
"""
    source = BETWEEN.replace("def test_before", broken + "\ndef test_before")
    project.makepyfile(test_it=source.replace("test_step(model", "test_step(broken, model"))
    result = project.runpytest("--amp-static", "--amp-steps=2")
    result.assert_outcomes(passed=3, errors=1)
