"""AMP007 on records: what counts as another recipe, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_amp.observations import OptimizerUse
from tests.helpers.observations import IN_BF16, IN_FP32, START, findings, seen

ADAM = OptimizerUse("Adam", {"lr": "0.001", "eps": "1e-08"}, "train.py:7", (1e-3,) * 8)
NET = {"Net": "Net() in training", "Net.drop": "Dropout(p=0.1) in training"}


def said(amp: dict[str, Any], fp32: dict[str, Any] | None = None) -> list[Any]:
    """What AMP007 says of an amp arm, beside one that trains as `ADAM` and `NET` say."""
    plain = {"optimizers": (ADAM,), "modules": NET}
    observed = seen(fp32={**plain, **(fp32 or {})}, amp={**plain, **amp})
    return [each for each in findings(observed) if each.code == "AMP007"]


def test_the_same_recipe_is_none_of_its_business() -> None:
    assert said({}) == []


@pytest.mark.parametrize(
    ("changed", "what", "figures"),
    [
        ({"name": "AdamW"}, "optimizer", "has Adam, the amp arm AdamW"),
        ({"settings": {"lr": "0.001", "eps": "0.0001"}}, "optimizer", "eps=1e-08, the amp arm eps"),
        ({"rates": (*ADAM.rates[:3], *(5e-4,) * 5)}, "schedule", "0.001 at step 4 of Adam"),
        ({"rates": ADAM.rates[:4]}, "number of steps", "8 steps of Adam, the amp arm 4"),
    ],
)
def test_an_optimizer_that_trains_otherwise_is_named_with_its_line(changed, what, figures) -> None:
    [finding] = said({"optimizers": (replace(ADAM, **changed),)})
    assert (finding.severity, finding.location) == ("error", "train.py:7")
    assert finding.evidence["what"] == what
    assert figures in finding.message


def test_settings_are_placed_where_the_optimizer_is_made() -> None:
    other = replace(ADAM, settings={"lr": "0.001", "eps": "0.0001"}, made_at="train.py:2")
    [finding] = said({"optimizers": (other,)})
    assert finding.location == "train.py:2"


@pytest.mark.parametrize(
    "changed",
    [
        {"rates": ADAM.rates[:7]},  # a step that the training left out by itself
        {"rates": (None,) * 8},  # tensors
        {"settings": {"lr": "0.001"}},  # an optimizer of another version
        {"location": "train.py:9"},
    ],
)
def test_what_an_optimizer_may_differ_in(changed) -> None:
    assert said({"optimizers": (replace(ADAM, **changed),)}) == []


def test_modules_are_compared_where_both_arms_have_them() -> None:
    [finding] = said({"modules": {**NET, "Net.drop": "Dropout(p=0.5) in training"}})
    assert finding.module == "drop"
    assert "Dropout(p=0.1) in training, the amp arm Dropout(p=0.5) in training" in finding.message
    assert said({"modules": {"Wrapped": "Wrapped() in training"}}) == []


def test_shapes_of_inputs_are_compared_and_dtypes_are_not() -> None:
    def inputs(digest: str) -> dict[str, Any]:
        return {"start": replace(START, inputs=(digest,))}

    fp32 = inputs("torch.float32[64, 16]:8")
    [finding] = said(inputs("torch.bfloat16[8, 16]:8"), fp32)
    assert "the shapes [64, 16], the amp arm [8, 16]" in finding.message
    assert said(inputs("torch.bfloat16[64, 16]:8"), fp32) == []


def test_probabilities_of_dropout_are_compared_where_both_arms_draw() -> None:
    def drawing(operators: Any, *rates: float) -> dict[str, Any]:
        return {"operators": replace(operators, dropout_rates=rates)}

    [finding] = said(drawing(IN_BF16, 0.1), drawing(IN_FP32, 0.5))
    assert "dropout with p=0.5, the amp arm p=0.1" in finding.message
    assert said(drawing(IN_BF16), drawing(IN_FP32, 0.5)) == []
