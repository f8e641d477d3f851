"""A failed amp test keeps its exception, and no model: one red test must not run others out of
memory."""

from __future__ import annotations

import sys
import traceback

import pytest

from pytest_amp.plugin.tracebacks import empty
from tests.helpers.project import QUICK, UNDECIDED

# Every model, copies too, is counted; `alive` says how many are left once the session is over.
CONFTEST = """
import gc, pathlib, weakref
import pytest, torch
import torch.nn.functional as F

MODELS = []

class Net(torch.nn.Linear):
    def __new__(cls, *args, **kwargs):
        model = super().__new__(cls)
        MODELS.append(weakref.ref(model))
        return model

    def __init__(self):
        super().__init__(8, 4)

@pytest.fixture
def model():
    return Net()

@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)

@pytest.fixture
def setup():
    def setup(arm, body=None):
        model = Net()
        model.trainer = [model]  # many a trainer's model refers to it
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(torch.ones(4, 8)), torch.arange(4))
            if body is not None:
                body(arm, model, loss)
            loss.backward()
            optimizer.step()
            return loss
        return step
    return setup

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    gc.collect()
    alive = sum(model() is not None for model in MODELS)
    if MODELS:
        pathlib.Path(session.config.rootpath, "alive").write_text(f"{alive} of {len(MODELS)}")
"""

HEAD = """
import sys
import pytest, torch
import torch.nn.functional as F

def raising(error):
    def body(arm, model, loss):
        raise error(model, loss)
    return body

def attribute(arm, model, loss):
    model.no_such_layer

def chained(arm, model, loss):
    try:
        raise KeyError("first", [model])
    except KeyError as error:
        raise RuntimeError("second") from error

def wrapped(arm, model, loss):
    try:
        raise KeyError("first")
    except KeyError as error:
        kept = error
    raise RuntimeError(kept, loss)
"""

TESTS = {
    "a missed gate of a body that is the step": """
    @pytest.mark.amp(min_memory_reduction=0.99)
    def test_it(model, optimizer):
        return F.cross_entropy(model(torch.ones(4, 8)), torch.arange(4))
    """,
    "a body that raises": """
    @pytest.mark.amp
    def test_it(model, optimizer):
        raise RuntimeError("in the body")
    """,
    "a missed gate": """
    @pytest.mark.amp(min_memory_reduction=0.99)
    def test_it(amp_benchmark, setup):
        amp_benchmark(setup)
    """,
    "a step that raises": """
    def test_it(amp_benchmark, setup):
        amp_benchmark(lambda arm: setup(arm, raising(lambda *_: RuntimeError("in the step"))))
    """,
    "a step whose exception holds the loss": """
    def test_it(amp_benchmark, setup):
        amp_benchmark(lambda arm: setup(arm, raising(lambda _, loss: AssertionError(loss))))
    """,
    "a step whose exception holds the model in a list": """
    def test_it(amp_benchmark, setup):
        amp_benchmark(lambda arm: setup(arm, raising(lambda model, _: ValueError("bad", [model]))))
    """,
    "a step that misses an attribute of the model": """
    def test_it(amp_benchmark, setup):
        amp_benchmark(lambda arm: setup(arm, attribute))
    """,
    "a step that raises one exception from another": """
    def test_it(amp_benchmark, setup):
        amp_benchmark(lambda arm: setup(arm, chained))
    """,
    "a step whose exception holds another": """
    def test_it(amp_benchmark, setup):
        amp_benchmark(lambda arm: setup(arm, wrapped))
    """,
    "a setup that raises": """
    def test_it(amp_benchmark, setup):
        def broken(arm):
            step = setup(arm)
            raise RuntimeError("in setup")
        amp_benchmark(broken)
    """,
    "a teardown of the arm that raises": """
    def test_it(amp_benchmark, setup):
        def broken(arm):
            step = setup(arm)
            def close():
                step
                raise RuntimeError("in teardown")
            arm.on_teardown(close)
            return step
        amp_benchmark(broken)
    """,
    "an assertion of the test's own": """
    def test_it(amp_benchmark, setup, model):
        models = []
        def keeping(arm):
            step = setup(arm)
            models.append(step)
            return step
        result = amp_benchmark(keeping)
        assert result.amp.losses[-1] < 0, models
    """,
    "a fixture that raises": """
    @pytest.fixture
    def trained(model):
        raise RuntimeError("in the fixture")

    @pytest.mark.amp
    def test_it(trained, optimizer):
        return trained
    """,
    "a fixture that raises at its end": """
    @pytest.fixture
    def ending(model):
        yield
        raise RuntimeError("at the end")

    @pytest.mark.amp(min_memory_reduction=0.99)
    def test_it(model, optimizer, ending):
        return F.cross_entropy(model(torch.ones(4, 8)), torch.arange(4))
    """,
}

if sys.version_info >= (3, 11):
    TESTS["a step that raises a group"] = """
    def test_it(amp_benchmark, setup):
        def grouped(arm, model, loss):
            try:
                raising(lambda *_: ValueError(loss))(arm, model, loss)
            except ValueError as error:
                raise ExceptionGroup("several", [error, KeyError("b")])
        amp_benchmark(lambda arm: setup(arm, grouped))
    """


def source(test: str) -> str:
    body = "\n".join(line.removeprefix("    ") for line in test.splitlines())
    return HEAD + body


def left_by(project: pytest.Pytester, test: str, *options: str) -> tuple[int, pytest.RunResult]:
    """How many models are alive when the session of this test is over."""
    project.makeconftest(CONFTEST)
    project.makepyfile(test_it=source(test))
    result = project.runpytest(*(options or QUICK))
    alive, _, built = (project.path / "alive").read_text("utf-8").partition(" of ")
    assert int(built) > 0
    return int(alive), result


@pytest.mark.parametrize("what", TESTS)
def test_what_failed_leaves_no_model_behind(project: pytest.Pytester, what: str) -> None:
    alive, result = left_by(project, TESTS[what], *QUICK, "--showlocals")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert alive == 0


@pytest.mark.parametrize(
    "options",
    [
        ("-x",),
        ("--maxfail=1",),
        ("--reruns=2",),
        ("-n1", "--reruns=1"),
        ("-p", "no:rerunfailures"),
        ("--tb=native",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("what", ["a missed gate", "a step that raises"])
def test_nothing_is_left_however_the_test_was_run(
    project: pytest.Pytester, what: str, options: tuple[str, ...]
) -> None:
    alive, result = left_by(project, TESTS[what], *QUICK, *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert alive == 0


def test_an_attempt_lets_go_of_its_models_before_the_next_one_builds(
    project: pytest.Pytester,
) -> None:
    count = TESTS["a step that raises"].replace(
        "    def test_it(amp_benchmark, setup):",
        "    def test_it(amp_benchmark, setup):\n"
        "        from conftest import MODELS\n"
        "        assert not any(model() for model in MODELS), 'of an earlier attempt'",
    )
    _, result = left_by(project, count, *QUICK, "--reruns=2")
    result.stdout.no_fnmatch_line("*of an earlier attempt")
    result.stdout.fnmatch_lines(["*1 failed*2 rerun*"])


def test_an_expected_failure_leaves_no_model_behind(project: pytest.Pytester) -> None:
    expected = TESTS["a missed gate"].replace("@pytest", "@pytest.mark.xfail\n    @pytest", 1)
    alive, result = left_by(project, expected)
    result.assert_outcomes(xfailed=1)
    assert alive == 0


def test_a_gate_without_an_answer_leaves_no_model_behind(project: pytest.Pytester) -> None:
    undecided = TESTS["a missed gate"].replace("(min_memory_reduction=0.99)", "")
    alive, result = left_by(
        project, undecided, *UNDECIDED, "--amp-strict", "--reruns=1", "--only-rerun=AmpInconclusive"
    )
    result.stdout.fnmatch_lines(["*1 failed*1 rerun*"])
    assert alive == 0


# What must stay


def test_the_locals_are_there_as_long_as_a_plugin_may_ask_for_them(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        interact="""
        def pytest_exception_interact(call):
            print("seen", "model" in call.excinfo.traceback[-1].frame.f_locals)
        """
    )
    project.syspathinsert()
    raising = TESTS["a step that raises"]
    _, result = left_by(project, raising, *QUICK, "-p", "interact", "--showlocals")
    result.stdout.fnmatch_lines(["*seen True*", "model * = Net(*"])


QUIET = """
import pdb

class Quiet(pdb.Pdb):
    def interaction(self, *_):
        print("interacts")
"""


def test_under_pdb_everything_stays(project: pytest.Pytester) -> None:
    project.makepyfile(quiet=QUIET)
    alive, result = left_by(
        project, TESTS["a step that raises"], *QUICK, "--pdb", "--pdbcls=quiet:Quiet"
    )
    result.stdout.fnmatch_lines(["*interacts*"])
    assert alive > 0


def test_a_test_that_is_no_amp_test_keeps_its_locals(project: pytest.Pytester) -> None:
    alive, result = left_by(project, "    def test_it(model):\n        assert model is None\n")
    result.assert_outcomes(failed=1)
    assert alive == 1


def test_a_fixture_that_waits_at_its_yield_is_not_closed(project: pytest.Pytester) -> None:
    result = left_by(
        project,
        """
    @pytest.fixture(scope="module")
    def kept():
        try:
            raise ValueError("kept by the fixture")
        except ValueError as error:
            found = error
        yield found
        print("torn down")

    @pytest.mark.amp
    def test_first(amp_benchmark, setup, kept):
        amp_benchmark(setup)
        raise kept

    def test_second(model, kept):
        print("second")
    """,
        *QUICK,
        "-s",
    )[1]
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*second*", "*torn down*"])


def test_an_emptied_exception_is_what_it_was_and_says_what_it_said() -> None:
    def inner(held: object) -> None:
        raise ValueError("inner", held)

    def outer(held: object) -> None:
        try:
            inner(held)
        except ValueError as error:
            raise KeyError("outer") from error

    try:
        outer([1])
    except KeyError as error:
        caught = error
    before = traceback.format_exception(caught)
    empty(caught)
    assert traceback.format_exception(caught) == before
    assert caught.args == ("outer",)


def test_an_exception_that_cannot_be_told_is_emptied_all_the_same() -> None:
    class Gone:
        def __repr__(self) -> str:
            raise RuntimeError("the device is gone")

    error = ValueError(Gone())
    empty(error)
    assert error.args == ("ValueError",)


def test_exceptions_that_hold_each_other_are_emptied_once() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__cause__ = other, one
    empty(one)
    assert one.args == ("one",)
