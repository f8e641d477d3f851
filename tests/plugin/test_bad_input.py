"""What a user may write wrong in a step or a fixture: an error names the thing and the fix."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.project import QUICK

HEAD = """
import itertools, threading
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from torch import nn

class Output(dict):
    loss = property(lambda self: self["loss"])
"""


def told(project: pytest.Pytester, source: str, *arguments: str) -> str:
    """The terminal output of a project whose one test must fail."""
    project.makepyfile(test_it=HEAD + source)
    result = project.runpytest(*QUICK, *arguments)
    result.assert_outcomes(failed=1)
    return result.stdout.str()


def error_of(output: str) -> str:
    """What stands between the failure's heading and the table, on one line."""
    failure = output.partition(" FAILURES ")[2].partition("= pytest-amp =")[0]
    return " ".join(failure.split())


WRITE_SETUP = "request amp_benchmark and call amp_benchmark(setup)"

BODIES = {
    "returns nothing": (
        "F.cross_entropy(model(batch[0]), batch[1])",
        "the test returned no loss: end its body with `return loss`",
    ),
    "returns a vector": (
        "return model(batch[0])[:, 0]",
        "the loss is not a scalar but a tensor of shape (4,): reduce it, for example with .mean()",
    ),
    "returns a float": (
        "return model(batch[0]).mean().item()",
        "the test returned a float, not a loss: return the scalar tensor to train on",
    ),
    "returns a model's output": (
        "return SimpleNamespace(loss=model(batch[0]).mean())",
        "returned a SimpleNamespace (return its .loss), not a loss",
    ),
    "returns a model's output that is a mapping": (
        "return Output(logits=model(batch[0]), loss=model(batch[0]).mean())",
        "the test returned a Output, not a loss: return its .loss",
    ),
    "calls backward": (
        "loss = model(batch[0]).mean(); loss.backward(); return loss",
        "the body called backward itself: end it with `return loss` and leave backward",
    ),
    "returns an empty dict": ("return {}", "the test returned an empty dict"),
    "detaches the loss": (
        "return model(batch[0]).mean().detach()",
        "the loss requires no grad, so there is nothing to train: it was detached",
    ),
    "runs without grad": (
        "with torch.no_grad():\n        return model(batch[0]).mean()",
        "computed under torch.no_grad()",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_whose_loss_is_none(project: pytest.Pytester, case: str) -> None:
    body, message = BODIES[case]
    output = told(
        project, f"@pytest.mark.amp\ndef test_step(model, optimizer, batch):\n    {body}\n"
    )
    assert message in error_of(output)
    assert "pytest_amp/" not in error_of(output)  # no frames of ours
    assert "ERROR" in output.partition(" pytest-amp ")[2]


FIXTURES = {
    "lock": (
        "threading.Lock()",
        "the fixture 'extra' can't be copied for the two arms (TypeError",
    ),
    "generator": (
        "(n for n in range(3))",
        "the fixture 'extra' is an iterator (generator), which can't be copied for two arms",
    ),
    "iterator over a loader": (
        "iter(torch.utils.data.DataLoader([1, 2]))",
        "the fixture 'extra' is an iterator (_SingleProcessDataLoaderIter)",
    ),
    "loader": (
        "torch.utils.data.DataLoader([1, 2])",
        "the fixture 'extra' is a DataLoader: the body runs once per step, not once per epoch",
    ),
    "loader in a dict": (
        "{'train': torch.utils.data.DataLoader([1, 2])}",
        "the fixture 'extra' is a DataLoader",
    ),
    "non-leaf tensor": (
        "torch.ones(2, requires_grad=True) * 2",
        "the fixture 'extra' can't be copied for the two arms (RuntimeError",
    ),
    "module": ("itertools", "the fixture 'extra' can't be copied for the two arms (TypeError"),
    "scaler": (
        "torch.amp.GradScaler('cpu')",
        "the fixture 'extra' is a GradScaler: when the body is the step, pytest-amp scales for it",
    ),
    "LBFGS": (
        "torch.optim.LBFGS(nn.Linear(2, 2).parameters())",
        "the fixture 'extra' is an LBFGS optimizer, which needs a closure",
    ),
}


@pytest.mark.parametrize("case", FIXTURES)
def test_a_fixture_that_no_step_can_take(project: pytest.Pytester, case: str) -> None:
    value, message = FIXTURES[case]
    output = told(
        project,
        f"""
@pytest.fixture
def extra():
    return {value}

@pytest.mark.amp
def test_step(model, optimizer, batch, extra):
    return F.cross_entropy(model(batch[0]), batch[1])
""",
    )
    assert message in error_of(output)
    assert WRITE_SETUP in error_of(output)


def test_no_optimizer(project: pytest.Pytester) -> None:
    output = told(
        project,
        "@pytest.mark.amp\ndef test_step(model, batch):\n    return model(batch[0]).mean()\n",
    )
    assert "no optimizer among the fixtures (model, batch)" in error_of(output)
    assert WRITE_SETUP in error_of(output)


ORIGINALS = {
    "a closure": """
@pytest.fixture
def loss_of(model):
    return lambda x: model(x).mean()

@pytest.mark.amp
def test_step(model, optimizer, batch, loss_of):
    return loss_of(batch[0])
""",
    "a patched forward": """
@pytest.fixture
def patched(model):
    original = model.forward
    model.forward = lambda x: 2 * original(x)
    return model

@pytest.mark.amp
def test_step(patched, optimizer, batch):
    return patched(batch[0]).mean()
""",
}


@pytest.mark.parametrize("case", ORIGINALS)
def test_an_original_that_goes_on_training(project: pytest.Pytester, case: str) -> None:
    error = error_of(told(project, ORIGINALS[case]))
    assert "was trained, not its copy" in error
    assert "(a closure, a patched forward, a lambda)" in error
    assert WRITE_SETUP in error


def steps(body: str, before: str = "", call: str = "amp_benchmark(setup)") -> str:
    """A test with a setup of its own, around the body of its step."""
    return f"""
def test_step(amp_benchmark):
    def setup(arm):
        model = nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x = torch.ones(4, 8)
        {before}
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = model(x).float().mean()
            loss.backward()
            optimizer.step()
            {body}
        return step
    {call}
"""


STEPS = {
    "returns nothing": ("pass", "no loss: the loss is None. The step must return its loss"),
    "returns a vector": (
        "return model(x)[:, 0]",
        "the loss is not a scalar but a tensor of shape (4,) and dtype torch.float32: reduce it",
    ),
    "returns a complex number": (
        "return torch.tensor(1j)",
        "dtype torch.complex64",
    ),
    "returns text": (
        "return 'low'",
        "the loss is a str: the step must return a float, a scalar tensor, or a dict of them",
    ),
    "returns a model's output": (
        "return SimpleNamespace(loss=loss)",
        "the loss is a SimpleNamespace (return its .loss)",
    ),
    "returns a model's output that is a mapping": (
        "return Output(logits=model(x), loss=loss)",
        "the loss is a Output (return its .loss)",
    ),
    "returns an empty dict": ("return {}", "the step returned an empty dict"),
    "a key without a loss": (
        "return {'g': loss, 'd': None}",
        "no loss: the loss 'd' is None",
    ),
    "other keys in the other arm": (
        "return {arm.name: loss}",
        "the fp32 arm's step returned the losses ['fp32'], the amp arm's ['amp']",
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_whose_loss_is_none(project: pytest.Pytester, case: str) -> None:
    body, message = STEPS[case]
    error = error_of(told(project, steps(body)))
    assert message in error
    assert "> amp_benchmark(setup)" in error
    assert "pytest_amp/" not in error


def test_keys_that_change_from_step_to_step(project: pytest.Pytester) -> None:
    source = steps("return {f'loss{next(count)}': loss}", "count = itertools.count()")
    message = "the step returned the losses ['loss1'], and before that ['loss0']"
    assert message in error_of(told(project, source))


FINE = ("return loss", "return loss.detach()", "return loss.item()", "return {'g': loss, 'd': 1.5}")


@pytest.mark.parametrize("body", FINE)
def test_in_a_step_of_ones_own_any_loss_will_do(project: pytest.Pytester, body: str) -> None:
    project.makepyfile(test_it=HEAD + steps(body))
    project.runpytest(*QUICK).assert_outcomes(passed=1)


def test_a_setup_that_returns_no_step(project: pytest.Pytester) -> None:
    source = """
def test_step(amp_benchmark):
    def setup(arm):
        nn.Linear(8, 4)
    amp_benchmark(setup)
"""
    message = "setup(arm) returned NoneType, not a callable: it must return the function"
    assert message in error_of(told(project, source))


def test_a_setup_that_is_no_function(project: pytest.Pytester) -> None:
    error = error_of(told(project, "def test_step(amp_benchmark):\n    amp_benchmark(3)\n"))
    assert "amp_benchmark(setup) takes a function of the arm, not a int" in error


def test_a_request_that_m_amp_cannot_see(project: pytest.Pytester) -> None:
    dynamic = """
def test_step(request):
    request.getfixturevalue("amp_benchmark")(lambda arm: lambda: 1.0)
"""
    error = error_of(told(project, dynamic))
    assert "`-m amp` does not select this test: make it an argument of the test" in error


def test_ranks_that_would_wait_for_each_other_for_ever(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    project.makepyfile(test_it=HEAD + steps("return loss"))
    result = project.runpytest("--amp-steps=2")
    result.assert_outcomes(failed=1)
    error = error_of(result.stdout.str())
    assert "timed runs on several ranks (there are 2) are not supported yet" in error
    assert "--amp-static" in error
    project.runpytest(*QUICK).assert_outcomes(passed=1)


def test_two_losses_of_one_name(project: pytest.Pytester) -> None:
    error = error_of(told(project, steps("return {1: loss, '1': loss}")))
    assert "two of the step's losses have the same name: [1, '1']" in error


def test_a_loss_beyond_what_a_float_holds(project: pytest.Pytester) -> None:
    assert "the loss is a number that no float holds" in error_of(
        told(project, steps("return 10**400"))
    )


def test_two_calls_in_one_test(project: pytest.Pytester) -> None:
    source = steps("return loss", call="amp_benchmark(setup); amp_benchmark(setup)")
    error = error_of(told(project, source))
    assert "amp_benchmark was called twice in one test" in error
    assert "pytest.mark.parametrize" in error


@pytest.mark.parametrize(
    ("arm", "where"), [("amp", "step 1 (parity)"), ("fp32", "step 1 (parity)")]
)
def test_a_step_that_raises_in_one_arm_only(project: pytest.Pytester, arm: str, where: str) -> None:
    before = f"""
        def work(x):
            if arm.name == "{arm}":
                raise ValueError("no kernel for this dtype")
        """
    output = told(project, steps("work(x); return loss", before))
    error = error_of(output)
    assert '> raise ValueError("no kernel for this dtype")' in error
    assert "in step work(x); return loss" in error  # the user's own line on the way
    assert f"pytest-amp: raised in the {arm} arm, {where}" in error
    assert "pytest_amp/" not in error
    assert f"{arm} arm, parity, step 1, ValueError: no kernel" in output


def test_a_setup_that_raises_in_one_arm_only(project: pytest.Pytester) -> None:
    source = steps("return loss", "if arm.enabled: raise ValueError('no weights')")
    error = error_of(told(project, source))
    assert "ValueError: no weights" in error
    assert "pytest-amp: raised in setup of the amp arm" in error


def test_memory_that_runs_out_in_one_arm(project: pytest.Pytester) -> None:
    before = """
        def work():
            if not arm.enabled:
                raise torch.OutOfMemoryError("tried to allocate 9000 GiB")
        """
    error = error_of(told(project, steps("work(); return loss", before)))
    assert "OutOfMemoryError: tried to allocate 9000 GiB" in error
    assert "pytest-amp: raised in the fp32 arm, step 1 (parity)" in error


def test_a_loader_that_runs_out(project: pytest.Pytester) -> None:
    source = steps("return loss + next(data)", "data = iter([0.0])")
    error = error_of(told(project, source))
    assert "the step ran out of data in the amp arm, step 2 (parity)" in error
    assert "itertools.cycle(loader)" in error


def test_a_schedule_that_runs_out(project: pytest.Pytester) -> None:
    before = "schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2)"
    error = error_of(told(project, steps("schedule.step(); return loss", before)))
    assert "ValueError: Tried to step" in error
    assert "the schedule ran out: the experiment may call the step without limit" in error


def test_a_device_that_is_not_there(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = error_of(told(project, steps("return loss"), "--amp-device=cuda:7"))
    assert "the device 'cuda:7' is not there: this machine has cpu" in error
    assert "Choose another with --amp-device, or auto; where a marker names it" in error


BUG = """
import pytest_amp.judge.parity

def test_step(amp_benchmark, monkeypatch):
    parity = pytest_amp.judge.parity
    monkeypatch.setattr(parity, "compare", eval("lambda *_: 1 / 0", vars(parity)))
    amp_benchmark(lambda arm: lambda: 1.0)
"""


def test_a_bug_of_our_own_stays_in_sight(project: pytest.Pytester) -> None:
    assert "pytest_amp/experiment/run.py" in error_of(told(project, BUG))
