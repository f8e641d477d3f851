"""Whose rules of autocast are in force."""

from __future__ import annotations

import pytest

from pytest_amp.settings.resolved import resolve


def policy(kind="cpu", accelerator=False, for_cuda=False, **given: object) -> str:
    return resolve([("cli", given)]).policy_on(kind, accelerator, for_cuda)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"static": True}, "cuda"),
        ({"static": False}, "native"),
        ({"static": True, "dtype": "bfloat16"}, "native"),
        ({"static": True, "candidate": "bf16"}, "native"),
        ({"static": True, "reference": "bf16"}, "native"),
        ({"static": True, "device": "cpu"}, "native"),
        ({"static": True, "policy": "native"}, "native"),
        ({"static": True, "policy": "cuda", "dtype": "bfloat16", "device": "cpu"}, "cuda"),
    ],
)
def test_cudas_rules_are_assumed_where_nothing_else_was_chosen(given, expected) -> None:
    assert policy(**given) == expected


def test_a_machine_with_a_gpu_has_its_own() -> None:
    assert policy("cuda", accelerator=True, static=True) == "native"
    assert policy("cpu", accelerator=True, static=True) == "native"
    assert policy("cuda", accelerator=True, static=False, policy="cuda") == "native"


def test_a_test_that_asks_for_cuda_has_cudas_whatever_its_dtype() -> None:
    assert policy(for_cuda=True, static=True, dtype="bfloat16") == "cuda"
    assert policy(for_cuda=True, static=True, policy="native") == "native"
    assert policy(for_cuda=True, static=False) == "native"


def test_cudas_rules_are_refused_where_they_say_nothing() -> None:
    with pytest.raises(ValueError, match="policy='cuda' is for --amp-static"):
        policy(policy="cuda")
    with pytest.raises(ValueError, match="policy='cuda' is for a CPU, and the test runs on mps"):
        policy("mps", accelerator=True, static=True, policy="cuda")


def test_a_policy_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="'gpu' is not one of auto, native, cuda"):
        resolve([("cli", {"policy": "gpu"})])
