"""How often a timing gate decides wrongly, over simulated tests, and after how many pairs.

Every simulated test asks `judge.sequential.decide` after each pair, up to a budget of pairs, as the
experiment does. A pair is two blocks in random order, as in lab/phases/timing.py; the noise is a
factor on a block's time, and acts on the blocks in the order in which they ran. The true speedup,
the median of the pairs' ratios, is exactly the threshold (both decisions are counted as wrong), 2%
below it (a pass is wrong) or 2% above it (a fail is wrong). Wanted, with noise that is common to
both arms: each wrong decision in at most `error_rate` of the tests.

Noise of one arm's own that lasts from pair to pair is outside of what the test can promise: its
wrong decisions are reported as they are, with how often AMP006 spoke of the pairs' autocorrelation.

Last, the pairs needed where the truth is away from the threshold. Wanted: at most 12 where it is
1.5x off, at 3% noise.
"""

import argparse
import math
import platform
import time
from functools import partial

import numpy as np

from pytest_amp.judge import sequential
from pytest_amp.rules.measurement import serial

TRUTHS = (0.98, 1.0, 1.02)
CHECKED = 20  # tests of each kind whose decisions are compared with sequential.decide itself


# Noise of the machine: logarithms of the factor on each block's time, in the order of time.


def lognormal(rng, shape):
    return 0.05 * rng.standard_normal(shape)


def heavy_tailed(rng, shape):
    """Student's t with 2 degrees of freedom: it has no variance."""
    return 0.03 * rng.standard_t(2, shape)


def stalls(rng, shape):
    """A fifth of the blocks is held up, by a Pareto draw that has no mean."""
    return np.log1p((rng.random(shape) < 0.2) * rng.pareto(0.8, shape)) + _little(rng, shape)


def drifting(rng, shape):
    """From a random moment on, the machine gets slower or faster, within pairs as between them."""
    tests, blocks = shape
    since = np.linspace(0, 1, blocks) - rng.uniform(-1, 1, (tests, 1))
    return rng.normal(0, 2, (tests, 1)) * np.maximum(since, 0) + 0.2 * _little(rng, shape)


def bimodal(rng, shape):
    """Two modes, 1.4x apart, of whatever runs; a switch comes in the midst of a block."""
    return np.log1p(0.4 * _slow_share(rng, shape, 0.15)) + _little(rng, shape)


def autocorrelated(rng, shape):
    return 0.1 * _ar(rng, shape, 0.9) + _little(rng, shape)


COMMON = (lognormal, heavy_tailed, stalls, drifting, bimodal, autocorrelated)


def _little(rng, shape):
    return 0.01 * rng.standard_normal(shape)


def _ar(rng, shape, rho):
    """AR(1) of unit variance, from its stationary state on."""
    noise = rng.standard_normal(shape)
    noise[:, 1:] *= math.sqrt(1 - rho**2)
    for i in range(1, shape[1]):
        noise[:, i] += rho * noise[:, i - 1]
    return noise


def _slow_share(rng, shape, switch):
    """The share of each block's time in the slow one of two modes, 0 or 1 but where they switch."""
    switches = rng.random(shape) < switch
    slow = (np.cumsum(switches, axis=1) + rng.integers(0, 2, (shape[0], 1))) % 2
    return np.where(switches, rng.random(shape), slow)


def ratios_of(rng, noise):
    """fp32 / amp of each two successive blocks, which ran in random order."""
    fp32_first = rng.choice([1, -1], (noise.shape[0], noise.shape[1] // 2))
    return np.exp(fp32_first * (noise[:, 0::2] - noise[:, 1::2]))


# Noise of the arms, each with its own: ratios of pairs.


def own_ar(rng, shape, rho):
    return np.exp(0.05 * (_ar(rng, shape, rho) - _ar(rng, shape, rho)))


def own_mode(rng, shape, pairs):
    """One arm is slower by 5% in one of two modes, each kept for so many pairs on average."""
    slower = 0.05 * (_slow_share(rng, shape, 1 / pairs) - 0.5)
    return np.exp(slower + _little(rng, shape) - _little(rng, shape))


OWN = {
    **{f"AR(1), rho {rho:.2f}": partial(own_ar, rho=rho) for rho in (0, 0.3, 0.5, 0.7, 0.9, 0.97)},
    **{f"mode kept {pairs} pairs": partial(own_mode, pairs=pairs) for pairs in (5, 20, 100)},
}


class Procedure:
    """`sequential.decide` after every pair, of many tests at once: by the wins that decide."""

    def __init__(self, budget, error_rate):
        self.error_rate = error_rate
        self.pairs = np.arange(1, budget + 1)
        self.needed = np.array([self._needed(pairs) for pairs in range(1, budget + 1)])
        self.tests = 0

    def _needed(self, pairs):
        deciding = (
            wins
            for wins in range(pairs + 1)
            if sequential.evidence(wins, pairs) >= 1 / self.error_rate
        )
        return next(deciding, pairs + 1)

    def __call__(self, ratios, threshold=1.0):
        """Per test: 1, -1 or 0 for pass, fail or inconclusive, and after how many pairs."""
        wins = np.cumsum(ratios >= threshold, axis=1)
        passes, fails = wins >= self.needed, self.pairs - wins >= self.needed
        decided = passes | fails
        last = np.where(decided.any(axis=1), decided.argmax(axis=1), len(self.pairs) - 1)
        each = np.arange(len(ratios))
        verdicts = passes[each, last].astype(int) - fails[each, last]
        self._check(ratios[:CHECKED], threshold, verdicts, last + 1)
        self.tests += len(ratios)
        return verdicts, last + 1

    def _check(self, ratios, threshold, verdicts, lengths):
        for test, verdict, length in zip(ratios.tolist(), verdicts, lengths, strict=False):
            asked = [
                sequential.decide(test[:pairs], threshold, self.error_rate)
                for pairs in range(1, length + 1)
            ]
            answer = {1: "pass", -1: "fail", 0: None}[int(verdict)]
            assert asked == [None] * (length - 1) + [answer], (asked, answer)


def percent(share):
    return "-" if share is None else f"{100 * share:.2f}%"


def print_common(procedure, rng, tests):
    print(f"{'common noise':<20}{'truth':>7}{'wrong pass':>12}{'wrong fail':>12}", end="")
    print(f"{'inconclusive':>14}{'median pairs':>14}")
    worst = 0.0
    for noise in COMMON:
        for truth in TRUTHS:
            blocks = noise(rng, (tests, 2 * len(procedure.pairs)))
            verdicts, pairs = procedure(truth * ratios_of(rng, blocks))
            passes = (verdicts == 1).mean() if truth <= 1 else None
            fails = (verdicts == -1).mean() if truth >= 1 else None
            worst = max(worst, passes or 0, fails or 0)
            print(f"{noise.__name__:<20}{truth:>6.2f}x{percent(passes):>12}", end="")
            print(f"{percent(fails):>12}{percent((verdicts == 0).mean()):>14}", end="")
            print(f"{np.median(pairs):>14.0f}")
    print(f"worst wrong decision {percent(worst)} (wanted: <= {percent(procedure.error_rate)})\n")


def print_own(procedure, rng, tests):
    print(f"{'':<44}{'AMP006 spoke among':>30}")
    print(f"{'noise of the arms':<20}{'wrong pass':>12}{'wrong fail':>12}", end="")
    print(f"{'wrong':>12}{'inconclusive':>14}")
    for name, noise in OWN.items():
        ratios = noise(rng, (tests, len(procedure.pairs)))
        verdicts, pairs = procedure(ratios)
        spoke = np.array(
            [
                serial(test[:length].tolist()) is not None
                for test, length in zip(ratios, pairs, strict=True)
            ]
        )
        print(f"{name:<20}{percent((verdicts == 1).mean()):>12}", end="")
        print(f"{percent((verdicts == -1).mean()):>12}", end="")
        print(f"{percent(spoke[verdicts != 0].mean()):>12}", end="")
        print(f"{percent(spoke[verdicts == 0].mean()) if (verdicts == 0).any() else '-':>14}")
    print()


def print_false_alarms(procedure, rng, tests):
    print(f"{'AMP006, false alarms':<20}{'at 1.00x':>12}{'at 1.02x':>12}{'at 1.10x':>12}")
    for noise in COMMON:
        shares = []
        for truth in (1.0, 1.02, 1.1):
            ratios = truth * ratios_of(rng, noise(rng, (tests, 2 * len(procedure.pairs))))
            _, pairs = procedure(ratios)
            cut = zip(ratios, pairs, strict=True)
            shares.append(np.mean([serial(test[:n].tolist()) is not None for test, n in cut]))
        print(f"{noise.__name__:<20}" + "".join(f"{percent(share):>12}" for share in shares))
    print()


def print_far(procedure, rng, tests):
    print(f"{'pairs at 3% noise':<20}{'median':>7}{'95%':>7}{'max':>7}")
    for truth in (1.5, 1.1, 1.05, 1 / 1.05, 1 / 1.1, 1 / 1.5):
        blocks = 0.03 * rng.standard_normal((tests, 2 * len(procedure.pairs)))
        _, pairs = procedure(truth * ratios_of(rng, blocks))
        wanted = " (wanted: <= 12)" if truth in (1.5, 1 / 1.5) else ""
        print(f"truth {truth:.2f}x{'':<9}{np.median(pairs):>7.0f}", end="")
        print(f"{np.percentile(pairs, 95):>7.0f}{pairs.max():>7}{wanted}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=20_000, help="of each noise and truth")
    parser.add_argument("--budget", type=int, default=200, help="pairs after which a test gives up")
    parser.add_argument("--error-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    procedure = Procedure(options.budget, options.error_rate)
    print(f"Python {platform.python_version()}, numpy {np.__version__}, seed {options.seed}")
    print(f"error rate {options.error_rate}, at most {options.budget} pairs, ", end="")
    print(f"{options.tests} tests of each common noise and truth\n")
    print_common(procedure, rng, options.tests)
    print_own(procedure, rng, options.tests // 2)
    print_false_alarms(procedure, rng, options.tests // 5)
    print_far(procedure, rng, options.tests // 5)
    print(f"\n{procedure.tests} simulated tests, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
