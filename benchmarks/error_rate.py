"""How often a timing gate decides wrongly, over simulated tests, and after how many pairs.

Every simulated test asks `judge.abstain.decide` as the experiment does, up to a budget of pairs. A
pair is two blocks in random order, as in lab/phases/timing.py; the noise is a factor on a block's
time, and acts on the blocks in the order in which they ran. The true speedup, the median of the
pairs' ratios, is exactly the threshold (both decisions are counted as wrong), 2% below it (a pass
is wrong) or 2% above it (a fail is wrong). Wanted, with noise that is common to both arms: each
wrong decision in at most `error_rate` of the tests.

Noise of one arm's own that lasts from pair to pair is outside of what the sequential test promises.
There the evidence is cut down by how far pairs follow each other. Wanted: each wrong decision in at
most 2% of the tests that lasted for three modes or more. `alone` is the sequential test without
that. An AR(1)'s mode is as long as its autocorrelation time.

Then the pairs needed where the truth is away from the threshold, at 3% noise: by the gate, and by
the sequential test alone. Wanted: a median of at most 1.3 times as many.

Last, whether a test that uses the ratios' sizes needs fewer pairs than the sign test does. It bets
on the sign of a log ratio, an amount that grows with its size, up to one that the earlier pairs'
spread sets; a mixture of bets makes an e-value. Its guarantee holds if noise is symmetric, as the
random order makes noise that is common to both arms, and as stalls of one arm alone don't.
"""

import argparse
import math
import platform
import time
from functools import partial

import numpy as np

from pytest_amp.judge import abstain, sequential
from pytest_amp.rules.measurement import serial

TRUTHS = (0.98, 1.0, 1.02)


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


# Each with the length of its modes, in pairs.
OWN = {
    **{
        f"AR(1), rho {rho:.2f}": (partial(own_ar, rho=rho), (1 + rho) / (1 - rho))
        for rho in (0, 0.3, 0.5, 0.7, 0.9, 0.97)
    },
    **{
        f"mode kept {pairs} pairs": (partial(own_mode, pairs=pairs), pairs)
        for pairs in (5, 20, 100)
    },
}


LOOKS = [pairs for pairs in range(1, 1001) if abstain.is_worth_a_look(pairs)]


class Procedure:
    """The gate's decisions on many tests, by `abstain.decide` or the sequential test alone.

    Most looks need no call, since the wins are too few for either.
    """

    def __init__(self, budget, error_rate):
        self.error_rate = error_rate
        self.looks = [pairs for pairs in LOOKS if pairs <= budget]
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

    def __call__(self, ratios, decide=abstain.decide):
        """Per test: 1, -1 or 0 for pass, fail or inconclusive, and after how many pairs."""
        self.tests += len(ratios)
        wins = np.cumsum(ratios >= 1, axis=1)
        maybe = (wins >= self.needed) | (self.pairs - wins >= self.needed)
        found = [
            self._one(test.tolist(), asked, decide)
            for test, asked in zip(ratios, maybe, strict=True)
        ]
        return tuple(np.array(each) for each in zip(*found, strict=True))

    def _one(self, test, maybe, decide):
        for pairs in self.looks:
            if maybe[pairs - 1] and (answer := decide(test[:pairs], 1.0, self.error_rate)):
                return (1 if answer == "pass" else -1), pairs
        return 0, len(test)


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
    print(f"{'':<20}{'alone':>24}{'':>14}{'at least three modes':>24}")
    print(f"{'noise of the arms':<20}" + f"{'wrong pass':>12}{'wrong fail':>12}" * 2, end="")
    print(f"{'inconclusive':>14}{'wrong pass':>12}{'wrong fail':>12}{'tests':>8}")
    worst = 0.0
    for name, (noise, lasts) in OWN.items():
        ratios = noise(rng, (tests, len(procedure.pairs)))
        for decide in (sequential.decide, abstain.decide):
            verdicts, pairs = procedure(ratios, decide)
            shares = [(verdicts == answer).mean() for answer in (1, -1)]
            print(f"{name:<20}" * (decide is sequential.decide), end="")
            print("".join(f"{percent(share):>12}" for share in shares), end="")
        long = verdicts[pairs >= 3 * lasts]
        shares = [(long == answer).mean() if len(long) else None for answer in (1, -1)]
        worst = max(worst, *(share or 0 for share in shares))
        print(f"{percent((verdicts == 0).mean()):>14}", end="")
        print("".join(f"{percent(share):>12}" for share in shares) + f"{len(long):>8}")
    print(f"worst of at least three modes {percent(worst)} (wanted: <= 2%)\n")


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
    print(
        f"{'pairs at 3% noise':<20}{'median':>7}{'mean':>7}{'95%':>7}{'alone':>10}{'mean':>7}",
        end="",
    )
    print(f"{'bets':>10}{'mean':>7}{'  median, by alone'}")
    for truth in (1.5, 1.1, 1.05, 1.02, 1 / 1.05, 1 / 1.1, 1 / 1.5):
        ratios = truth * ratios_of(
            rng, 0.03 * rng.standard_normal((tests, 2 * len(procedure.pairs)))
        )
        _, pairs = procedure(ratios)
        _, alone = procedure(ratios, sequential.decide)
        _, sizes = bets(ratios, procedure.error_rate)
        print(f"truth {truth:.2f}x{'':<9}{np.median(pairs):>7.0f}{pairs.mean():>7.1f}", end="")
        print(
            f"{np.percentile(pairs, 95):>7.0f}{np.median(alone):>10.0f}{alone.mean():>7.1f}", end=""
        )
        print(f"{np.median(sizes):>10.0f}{sizes.mean():>7.1f}", end="")
        print(f"{np.median(pairs) / np.median(alone):>10.2f} (wanted: <= 1.3)")


def stalls_of_amp(rng, shape):
    """Ratios with a median of 1, where a fifth of the amp blocks alone is held up."""
    logs = _little(rng, shape) - stalls(rng, shape)
    return np.exp(logs - np.median(logs))


def print_bets(procedure, rng, tests):
    """Wrong decisions, by the sign test and by bets on sizes, where noise is symmetric or not."""
    head = ("signs pass", "signs fail", "bets pass", "bets fail")
    print(f"\n{'wrong, alone':<20}" + "".join(f"{each:>12}" for each in head))
    shape = tests, len(procedure.pairs)
    for name, ratios in (
        ("noise of both arms", ratios_of(rng, lognormal(rng, (tests, 2 * shape[1])))),
        ("stalls of both arms", ratios_of(rng, stalls(rng, (tests, 2 * shape[1])))),
        ("stalls of amp alone", stalls_of_amp(rng, shape)),
    ):
        signs, _ = procedure(ratios, sequential.decide)
        sizes, _ = bets(ratios, procedure.error_rate)
        shares = [(each == answer).mean() for each in (signs, sizes) for answer in (1, -1)]
        print(f"{name:<20}" + "".join(f"{percent(share):>12}" for share in shares))


def bets(ratios, error_rate):
    """What a mixture of bets on the ratios' signs and sizes decides, and after how many pairs."""
    logs = np.log(ratios)
    tests, pairs = logs.shape
    stakes = (np.arange(32) + 0.5) / 32
    weights = np.full(32, 0.5 / 32)
    weights[-2] += 0.5  # half of the money expects a clear answer
    size = np.sign(logs)
    for pair in range(4, pairs):
        past = logs[:, :pair]
        middle = np.median(past, axis=1, keepdims=True)
        spread = 1.4826 * np.median(abs(past - middle), axis=1)
        size[:, pair] = np.clip(logs[:, pair] / np.maximum(spread, 1e-9), -1, 1)
    needed, verdicts = np.full(tests, pairs), np.zeros(tests, int)
    for sign in (1, -1):
        money = np.tile(np.log(weights), (tests, 1))
        for pair in range(pairs):
            money += np.log1p(stakes * sign * size[:, pair : pair + 1])
            most = money.max(axis=1)
            value = most + np.log(np.exp(money - most[:, None]).sum(axis=1))
            enough = (value >= -math.log(error_rate)) & (needed > pair + 1)
            needed[enough], verdicts[enough] = pair + 1, sign
    return verdicts, needed


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
    print_bets(procedure, rng, options.tests // 5)
    print(f"\n{procedure.tests} simulated tests, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
