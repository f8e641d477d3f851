"""Digests and samples: what they tell apart, and in how many launches."""

from __future__ import annotations

import pytest
import torch

from pytest_amp.lab.watch import fingerprint
from pytest_amp.lab.watch.fingerprint import digest, pieces, sample


def test_a_device_is_given_fewer_and_longer_pieces_than_a_cpu() -> None:
    """A launch takes as long for 4096 elements as for a million: 124M weights took 4.5 s."""
    count, million = 2**24 + 5, 2**20
    on_device = list(pieces(torch.empty(count, device="meta")))
    assert [start for start, _ in on_device] == list(range(0, count, million))
    assert sum(piece.numel() for _, piece in on_device) == count
    on_cpu = list(pieces(torch.empty(count)))
    assert len(on_cpu) > 8 * len(on_device)
    assert sum(piece.numel() for _, piece in on_cpu) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_the_length_of_the_pieces_does_not_show(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.randn(3 * 2**14 + 7).mul(100).to(dtype)
    found = []
    for length in (2**12, 2**14, 2**20):
        monkeypatch.setitem(fingerprint._LEAST_PIECE, "cpu", length)
        found.append((digest([tensor]), sample(tensor)))
    assert len({digests for digests, _ in found}) == 1
    for _, values in found[1:]:
        assert values == pytest.approx(found[0][1], rel=1e-4, abs=1e-2)


def test_digests_tell_two_draws_and_two_orders_apart() -> None:
    one, other = torch.randn(100), torch.randn(100)
    assert len({digest([each]) for each in (one, other, one.flip(0))}) == 3
    assert digest([one]) == digest([one.clone()])
