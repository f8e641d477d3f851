"""Which tests measure, and which are refused: those that would run green without us."""

from __future__ import annotations

import pytest

from tests.helpers.project import CONFTEST, STEP, measure

UNFIT = """
import pytest, unittest

amp = pytest.mark.amp

@amp(min_speedpu=1.3)
def test_keyword(): ...

@amp(1.3)
def test_positional(): ...

@amp(min_speedup=float("nan"))
def test_value(): ...

@amp(strict="device")
def test_not_for_markers(): ...

@amp
async def test_async(): ...

@amp
async def test_async_generator():
    yield

class TestCase(unittest.TestCase):
    @amp
    def test_method(self): ...

@amp
def test_scaler(amp_scaler): ...

def test_other(): ...
"""


def test_m_amp_selects_whatever_measures_and_nothing_else(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=STEP
        + """
def test_requests(amp_benchmark, setup):
    amp_benchmark(setup)

@pytest.fixture
def bench(amp_benchmark):
    return amp_benchmark

def test_requests_through_a_fixture(bench, setup):
    bench(setup)

def test_other():
    pass
"""
    )
    result, reports = measure(project, "-m", "amp")
    result.assert_outcomes(passed=3, deselected=1)
    assert set(reports) == {"test_step", "test_requests", "test_requests_through_a_fixture"}
    project.runpytest("-m", "not amp").assert_outcomes(passed=1, deselected=3)


def test_what_is_unfit_is_listed_in_one_error_and_nothing_runs(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=UNFIT)
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "* ERROR collecting test_it.py *",
            "test_it.py::test_keyword: *'min_speedpu' (did you mean min_speedup?); valid are min_*",
            "test_it.py::test_positional: *takes keywords only, and was given (1.3,); write *",
            "test_it.py::test_value: *min_speedup: nan is not a ratio above 0 and at most 1000",
            "test_it.py::test_not_for_markers: *unknown setting 'strict'*",
            "test_it.py::test_async: *async test*",
            "test_it.py::test_async_generator: *async test*",
            "test_it.py::TestCase::test_method: *unittest method*",
            "test_it.py::test_scaler: *amp_scaler*amp_benchmark(setup)*",
        ]
    )
    result.stdout.no_fnmatch_line("*test_other*")


def test_each_file_with_something_unfit_has_its_error(project: pytest.Pytester) -> None:
    project.makepyfile(test_one=UNFIT, test_two=UNFIT)
    result = project.runpytest()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["ERROR test_one.py*", "ERROR test_two.py*"])


@pytest.mark.parametrize(
    "selection", [("-k", "other"), ("-m", "not amp"), ("test_it.py::test_other",)]
)
def test_what_was_not_selected_stops_nothing(
    project: pytest.Pytester, selection: tuple[str, ...]
) -> None:
    project.makepyfile(test_it=UNFIT)
    project.runpytest(*selection).assert_outcomes(passed=1, deselected=8 if selection[1:] else 0)


def test_the_rest_runs_if_pytest_is_told_to_go_on(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=UNFIT)
    result = project.runpytest("--continue-on-collection-errors")
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_async_test_is_refused_though_a_plugin_would_run_it(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS")
    project.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function")
    project.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.amp
        @pytest.mark.asyncio
        async def test_step(model, optimizer, batch):
            return model(batch[0]).sum()
        """
    )
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["plugins: *asyncio*", "test_it.py::test_step: *async test*"])


def test_an_item_that_is_no_function_is_refused_if_it_is_marked_itself(
    project: pytest.Pytester,
) -> None:
    project.makeconftest(
        """
        import pytest

        class Spec(pytest.Item):
            def runtest(self): ...

        class SpecFile(pytest.File):
            def collect(self):
                spec = Spec.from_parent(self, name="spec")
                spec.add_marker("amp")
                yield spec

        def pytest_collect_file(file_path, parent):
            if file_path.suffix == ".spec":
                return SpecFile.from_parent(parent, path=file_path)
        """
    )
    project.path.joinpath("a.spec").write_text("")
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["a.spec::spec: *on a Spec, which pytest-amp can't run*"])


def test_doctests_are_untouched_in_a_marked_module_too(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it='''
        """
        >>> 1 + 1
        2
        """
        import pytest
        pytestmark = pytest.mark.amp(min_speedup=2)
        '''
    )
    result, reports = measure(project, "--doctest-modules")
    result.assert_outcomes(passed=1)
    assert reports == {}
    result.stdout.no_fnmatch_line("*pytest-amp =*")


ON_A_CLASS = """
import pytest
import torch.nn.functional as F

@pytest.mark.amp
class TestSteps:
    scale = 1.0

    def test_one(self, model, optimizer, batch):
        return F.cross_entropy(model(batch[0]), batch[1]) * self.scale

    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_each(self, model, optimizer, batch, scale):
        return F.cross_entropy(model(batch[0]), batch[1]) * scale
"""


def test_a_class_s_mark_makes_each_of_its_methods_a_step(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=ON_A_CLASS)
    result, reports = measure(project)
    result.assert_outcomes(passed=3)
    names = ("TestSteps::test_one", "TestSteps::test_each[1.0]", "TestSteps::test_each[0.5]")
    assert set(reports) == set(names)
    whole, half = (reports[name]["arms"]["fp32"]["losses"]["loss"][0] for name in names[1:])
    assert half == pytest.approx(whole / 2)


def test_a_module_s_mark_holds_for_all_of_its_tests(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=STEP.replace("@pytest.mark.amp\n", "pytestmark = pytest.mark.amp(seed=3)\n")
    )
    result, reports = measure(project)
    result.assert_outcomes(passed=1)
    assert reports["test_step"]["settings"]["seed"] == {"value": 3, "from": "marker"}


def test_a_parametrized_case_may_have_a_marker_of_its_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest
        import torch.nn.functional as F

        @pytest.mark.amp(seed=1, warmup=1)
        @pytest.mark.parametrize("n", [0, pytest.param(1, marks=pytest.mark.amp(seed=2))])
        def test_step(model, optimizer, batch, n):
            return F.cross_entropy(model(batch[0]), batch[1])
        """
    )
    _, reports = measure(project)
    seeds = [reports[f"test_step[{n}]"]["settings"]["seed"]["value"] for n in (0, 1)]
    assert seeds == [1, 2]
    assert reports["test_step[1]"]["settings"]["warmup"]["value"] == 1


def test_conftest_may_mark_by_add_marker(project: pytest.Pytester) -> None:
    project.makeconftest(
        CONFTEST
        + """
def pytest_itemcollected(item):
    item.add_marker(pytest.mark.amp(seed=9))
"""
    )
    project.makepyfile(test_it=STEP.replace("@pytest.mark.amp\n", ""))
    _, reports = measure(project)
    assert reports["test_step"]["settings"]["seed"]["value"] == 9


@pytest.mark.parametrize("quick", [("--co",), ("--co", "-q")])
def test_collecting_measures_nothing(project: pytest.Pytester, quick: tuple[str, ...]) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest(*quick)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*1 test collected*"])
    result.stdout.no_fnmatch_line("*= pytest-amp =*")
