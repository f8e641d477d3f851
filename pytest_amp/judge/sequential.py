from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Literal


def evidence(w: int, n: int) -> float:
    return sum(comb(n + 1, j) for j in range(w + 1)) / ((n + 1) * comb(n, w))


def decide(r: Sequence[float], t: float, e: float) -> Literal["pass", "fail"] | None:
    n = len(r)
    if not n:
        return None
    w = sum(x >= t for x in r)
    if evidence(w, n) >= 1 / e:
        return "pass"
    if evidence(n - w, n) >= 1 / e:
        return "fail"
    return None


def fewest_pairs(e: float) -> int:
    n = 1
    while evidence(n, n) < 1 / e:
        n += 1
    return n


def interval(r: Sequence[float], e: float) -> tuple[float, float] | None:
    n = len(r)
    s = sorted(r)
    for w in range(n // 2, n + 1):
        if evidence(w, n) >= 1 / e:
            return s[n - w], s[w - 1]
    return None


def autocorrelation(r: Sequence[float]) -> float:
    return 0.0
