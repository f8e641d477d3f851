"""What is tried where a gate failed, and what the rerun is said to show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_amp.experiment import suspects
from pytest_amp.judge import gates
from pytest_amp.judge.case import Case, Limits
from pytest_amp.observations import Departure, Numerics, OpRow
from pytest_amp.results.values import Finding
from tests.helpers.observations import FLAGS, IN_BF16, losses, scaled, seen, timing

CONVOLUTION = OpRow("aten::convolution", "bfloat16", "bfloat16", "stem", flops=100)
PRODUCT = OpRow("aten::mm", "bfloat16", "bfloat16", "head", flops=100)
SLOW = timing(*(1.0,) * 12)


def case(observed, **limits):
    given = Limits(**limits)
    return Case(observed, {each.name: each for each in gates.judge(observed, given)}, given)


def ran(*rows, device_type="cpu", flags=FLAGS, timed=SLOW):
    operators = replace(IN_BF16, rows=rows)
    amp = {"operators": operators, "flags": flags}
    return seen(amp=amp, fp32={"flags": flags}, timing=timed, device_type=device_type)


def names(observed, min_speedup=1.3):
    return [remedy.name for remedy in suspects.remedies(case(observed, min_speedup=min_speedup))]


def test_convolutions_that_are_too_slow_are_tried_in_another_layout() -> None:
    assert names(ran(CONVOLUTION, PRODUCT)) == ["channels_last weights"]


def test_on_cuda_cudnn_may_also_choose_unless_it_does_already() -> None:
    both = ["channels_last weights", "cudnn.benchmark"]
    assert names(ran(CONVOLUTION, device_type="cuda")) == both
    tuned = {**FLAGS, "cudnn.benchmark": True}
    assert names(ran(CONVOLUTION, device_type="cuda", flags=tuned)) == both[:1]


@pytest.mark.parametrize(
    ("observed", "wanted"),
    [
        (ran(PRODUCT), 1.3),
        (ran(replace(CONVOLUTION, flops=25), PRODUCT), 1.3),
        (ran(replace(CONVOLUTION, phase="backward"), PRODUCT), 1.3),
        (ran(CONVOLUTION, timed=timing(*(1.5,) * 12)), 1.3),
        (ran(CONVOLUTION), None),
        (ran(CONVOLUTION, timed=None), 1.3),
    ],
)
def test_nothing_is_tried_where_it_is_not_that_or_nothing_is_wrong(observed, wanted) -> None:
    assert names(observed, wanted) == []


def test_a_remedy_that_helps_is_told_with_both_times_and_the_line() -> None:
    timed = timing(*(1.5,) * 12)
    assert suspects.is_settled(timed.ratios, 0.01)
    said = suspects.helped(suspects.CHANNELS_LAST, timed, 0.01)
    assert said.startswith("confirmed by a rerun: with channels_last weights an amp step takes ")
    assert "10.0 ms, and 15.0 ms without (1.50x [1.50, 1.50])" in said
    assert "model.to(memory_format=torch.channels_last)" in said


@pytest.mark.parametrize("ratios", [(1.0,) * 12, (0.5,) * 12, (1.5,) * 3, (1.04,) * 12, ()])
def test_a_remedy_that_may_not_help_is_not_told(ratios) -> None:
    assert suspects.helped(suspects.CHANNELS_LAST, timing(*ratios), 0.01) is None


def test_trying_ends_once_the_answer_is_clear_either_way() -> None:
    assert suspects.is_settled((0.9,) * 12, 0.01)
    assert not suspects.is_settled((0.9,) * 3, 0.01)
    assert not suspects.is_settled((1.0, 1.2) * 6, 0.01)


def finding(code="AMP304", module="layers.1", **evidence):
    return Finding(code, "name", "warning", "said", module=module, evidence=evidence)


DIVERGED = {"losses": losses(*scaled(1.5))}


def test_a_divergence_is_tried_in_the_module_that_leaves_float32_first() -> None:
    failing = case(seen(amp=DIVERGED), max_loss_diff=0.02)
    assert suspects.by_module(finding(), failing) == (in_module("layers.1"),)
    led = finding(first_to_leave="layers.0")
    assert suspects.by_module(led, failing) == (in_module("layers.0"),)
    assert suspects.by_line(led, failing) == ()


def in_module(path):
    return suspects.Suspect("loss_diff", modules=(path,))


def at(*lines):
    return suspects.Suspect("loss_diff", lines)


def departed(**amp):
    left = Departure("aten::log", None, "loss.py:9", "bfloat16", 0.6, 0.002, 0.002, ("loss.py:8",))
    observed = seen(amp={**DIVERGED, **amp})
    return case(replace(observed, numerics=Numerics(departure=left)), max_loss_diff=0.02)


def test_lines_are_tried_before_modules_and_then_those_that_fed_them() -> None:
    placed = replace(finding(), location="loss.py:12")
    assert suspects.by_line(placed, departed()) == (
        at("loss.py:12"),
        at("loss.py:9"),
        at("loss.py:9", "loss.py:8"),
    )
    again = replace(finding(), location="loss.py:9")
    assert suspects.by_line(again, departed()) == (at("loss.py:9"), at("loss.py:9", "loss.py:8"))


def test_all_lines_of_a_function_are_tried_together() -> None:
    here = "tests/experiment/test_suspects.py"
    first = test_all_lines_of_a_function_are_tried_together.__code__.co_firstlineno
    own = (f"{here}:{first + 1}", f"{here}:{first + 3}")
    numerics = Numerics(lines=(f"{here}:1", *own, f"{here}:2"))
    observed = replace(seen(amp=DIVERGED), numerics=numerics)
    placed = replace(finding(module=None), location=own[1])
    alone, together = suspects.by_line(placed, case(observed, max_loss_diff=0.02))
    assert (alone.lines, together.lines) == (own[1:], own)
    assert str(together) == (
        "all of test_all_lines_of_a_function_are_tried_together() kept in float32"
    )


def test_a_line_that_calls_the_whole_model_is_no_suspect() -> None:
    called = replace(PRODUCT, location="train.py:30")
    rest = replace(PRODUCT, flops=10, location="loss.py:9")
    observed = departed(operators=replace(IN_BF16, rows=(called, rest)))
    placed = replace(finding(), location="train.py:30")
    assert suspects.by_line(placed, observed)[0] == at("loss.py:9")


@pytest.mark.parametrize(
    "given",
    [finding("AMP105"), finding(module=None), replace(finding(), suppressed="known")],
)
def test_other_findings_have_no_rerun(given) -> None:
    failing = case(seen(amp=DIVERGED), max_loss_diff=0.02)
    assert (suspects.by_line(given, failing), suspects.by_module(given, failing)) == ((), ())


def test_nothing_is_tried_where_the_gate_passed() -> None:
    passing = case(seen(), max_loss_diff=0.02)
    assert suspects.by_module(finding(), passing) == ()
    assert not suspects.wants_lines((), passing)


@pytest.mark.parametrize(
    ("found", "wants"),
    [
        ((), True),
        ((finding(),), True),  # not confirmed
        ((replace(finding(), confirmed=True),), False),
        ((replace(finding("AMP203"), severity="error"),), False),  # no matter of precision
        ((replace(finding("AMP301"), severity="error"),), True),
    ],
)
def test_lines_are_searched_where_a_failed_loss_gate_is_not_explained(found, wants) -> None:
    assert suspects.wants_lines(found, case(seen(amp=DIVERGED), max_loss_diff=0.02)) is wants


def test_the_lines_to_try_are_the_last_first_without_the_model() -> None:
    called = replace(PRODUCT, location="train.py:30")
    observed = seen(amp={**DIVERGED, "operators": replace(IN_BF16, rows=(called,))})
    lines = Numerics(lines=("data.py:3", "train.py:30", "loss.py:8", "loss.py:9"))
    tried = suspects.lines_to_try(case(replace(observed, numerics=lines), max_loss_diff=0.02))
    assert tried == ["loss.py:9", "loss.py:8", "data.py:3"]


def test_a_gate_that_passes_in_the_rerun_confirms_the_cause() -> None:
    failing = case(seen(amp=DIVERGED), max_loss_diff=0.02)
    suspect = in_module("layers.1")
    mended = suspects.judged(finding(), suspect, replace(failing, seen=seen()))
    assert mended.confirmed
    assert "with layers.1 kept in float32, loss_diff passes (0.1" in mended.message
    same = suspects.judged(finding(), suspect, failing)
    assert not same.confirmed
    assert "loss_diff still fails (50%)" in same.message


def test_a_confirmed_line_becomes_the_place() -> None:
    failing = case(seen(amp=DIVERGED), max_loss_diff=0.02)
    both = at("loss.py:9", "loss.py:8")
    mended = suspects.judged(finding(), both, replace(failing, seen=seen()))
    assert mended.location == "loss.py:9"
    assert "with loss.py:9 and loss.py:8 kept in float32, loss_diff passes" in mended.message
    assert suspects.judged(finding(), both, failing).location == finding().location
