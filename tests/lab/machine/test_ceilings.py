"""The ceilings of this device: what is measured, and that nothing else notices."""

from __future__ import annotations

import itertools

import pytest
import torch

from pytest_amp.judge.roofline import BACKWARD
from pytest_amp.lab.machine import ceilings
from pytest_amp.lab.machine.ceilings import Place, measured, reached
from pytest_amp.lab.machine.device import Device
from tests.helpers.lab import CPU

KINDS = ("products", *(
    kind + way for kind in ("convolutions", "attention", "recurrence") for way in ("", BACKWARD)
))  # fmt: skip


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each size once, and only small ones."""
    monkeypatch.setattr(ceilings, "_SPAN_S", 0.0)
    monkeypatch.setattr(ceilings, "_LEAST_CALLS", 1)
    monkeypatch.setattr(ceilings, "_MOST_SIZES", 3)
    reached.cache_clear()
    yield
    reached.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_kind_of_product_has_rates_by_ascending_size(dtype: str) -> None:
    best, usual = measured(Device(CPU), KINDS, [dtype])
    for kind in KINDS:
        for curve in (best.rates[kind, dtype], usual.rates[kind, dtype]):
            assert all(low < high for low, high in itertools.pairwise(curve.sizes))
            assert all(rate > 0 for rate in curve.rates)
    assert not best.overlaps
    assert best.moving("float32", 1e6) > 0


def test_a_backward_pass_counts_both_of_its_products_and_attention_what_it_computes_again() -> None:
    place = Place("cpu", 1)
    for kind, times in (("convolutions", 2.0), ("attention", 2.5), ("recurrence", 2.0)):
        forward = reached(place, kind, "float32").usual.sizes[0]
        assert reached(place, kind + BACKWARD, "float32").usual.sizes[0] == times * forward


def test_what_has_no_kernel_here_has_no_rates_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError('"attention" not implemented for "Half"')

    monkeypatch.setattr(ceilings.F, "scaled_dot_product_attention", refuse)
    best, _ = measured(Device(CPU), ["attention"], ["float16"])
    assert set(best.rates) == {("products", "float16")}
    assert best.rate("attention", "float16") is best.rate("products", "float16")


def test_without_any_room_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ceilings.torch, "randn", refuse)
    with pytest.raises(RuntimeError, match="not even a cast could be timed"):
        measured(Device(CPU), [], ["float32"])


def test_figures_are_measured_once_for_a_number_of_threads() -> None:
    first, second = (reached(Place("cpu", 1), "products", "float32") for _ in range(2))
    assert first is second
    assert first is not reached(Place("cpu", 2), "products", "float32")


def test_random_numbers_and_gradient_modes_of_the_user_make_no_difference() -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        best, _ = measured(Device(CPU), ["convolutions" + BACKWARD], ["float32"])
    assert best.rates["convolutions" + BACKWARD, "float32"].sizes
    assert torch.equal(torch.get_rng_state(), before)


def test_at_best_a_call_is_no_slower_than_the_slowest_layout_or_a_smaller_one() -> None:
    for kind in KINDS:
        found = reached(Place("cpu", 1), kind, "float32")
        assert found.best.sizes == found.usual.sizes
        assert list(found.best.rates) == sorted(found.best.rates)
        assert all(
            best >= usual for best, usual in zip(*(each.rates for each in found), strict=True)
        )
