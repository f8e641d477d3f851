"""How often change points are seen in flat noise, and how often a real step is found."""

from __future__ import annotations

import argparse

import numpy

from pytest_amp.storage.change_points import change_points

LENGTH = 100


def lognormal(spread):
    return lambda draw: draw.lognormal(0, spread, LENGTH)


def heavy(draw):
    return 1 + 0.02 * draw.standard_t(3, LENGTH)


def bimodal(draw):
    """Two modes 3% apart, one in four runs in the upper."""
    return 1 + 0.03 * (draw.random(LENGTH) < 0.25) + 0.005 * draw.standard_normal(LENGTH)


def autocorrelated(draw):
    noise = draw.standard_normal(LENGTH) * 0.02
    for place in range(1, LENGTH):
        noise[place] += 0.3 * noise[place - 1]
    return 1 + noise


def drifting(draw):
    """2% in all, as a machine that ages."""
    return numpy.linspace(1, 1.02, LENGTH) + 0.02 * draw.standard_normal(LENGTH)


FLAT = {
    "lognormal, 1%": lognormal(0.01),
    "lognormal, 3%": lognormal(0.03),
    "Student's t with 3 degrees, 2%": heavy,
    "two modes, 3% apart": bimodal,
    "autocorrelated by 0.3, 2%": autocorrelated,
    "drifting by 2%": drifting,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=2000)
    count = parser.parse_args().series
    draw = numpy.random.default_rng(0)
    print(f"false alarms: series of {LENGTH} flat runs in which a step was seen, of {count}")
    for name, make in FLAT.items():
        alarmed = sum(bool(change_points(make(draw))) for _ in range(count))
        print(f"  {name:<34} {100 * alarmed / count:6.2f}%")
    print("found: a step after 50 runs, within 2 runs of its place, at 2% noise")
    for size in (0.03, 0.05, 0.1):
        for after in (4, 6, 10, 30):
            hits = 0
            for _ in range(count // 4):
                series = draw.lognormal(0, 0.02, 50 + after)
                series[50:] *= 1 - size
                hits += any(abs(each.index - 50) <= 2 for each in change_points(series))
            print(f"  {size:4.0%} with {after:2} runs behind it {400 * hits / count:7.1f}%")


if __name__ == "__main__":
    main()
