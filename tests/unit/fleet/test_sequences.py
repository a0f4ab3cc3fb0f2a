"""Intervals that one may look at as often as one likes: held to published values, to exact sums, and to simulation."""

import math
from itertools import product

import numpy as np
import pytest

from pipeline.fleet.analysis.sequences import (
    QUANTILE_SPREAD,
    RATE_PRIOR,
    MeanDifference,
    Sample,
    log_mixture,
    quantile_ranks,
    rate_interval,
)

ALPHA = 0.05


def test_the_mixture_is_that_of_howard_and_others() -> None:
    """Values of the reference implementation that came with the paper (its R package, as quoted in the tests of the
    authors' library confseq): p 0.2, variance 100, best at 100 for alpha 0.05, in the paper's parameters."""
    rate, variance, spread = 0.2, 100, 12.60056 - 0.2 * 0.8
    total = variance / (rate * (1 - rate))
    prior = (spread / (1 - rate), spread / rate)

    def at(excess: float) -> float:
        return log_mixture(total * rate + excess, total, rate=rate, prior=prior)

    assert at(10) == pytest.approx(-0.6941012, abs=1e-5)
    assert at(31.4308) == pytest.approx(math.log(20), abs=1e-3)


@pytest.mark.parametrize("total", [1, 7, 200])
@pytest.mark.parametrize(("rate", "prior"), [(0.01, RATE_PRIOR), (0.3, RATE_PRIOR), (0.9, (20.0, 2.0))])
def test_the_mixture_is_a_fair_game(total: int, rate: float, prior: tuple[float, float]) -> None:
    """Its expectation under the true rate is exactly 1, whatever the number of requests."""
    expected = sum(
        math.exp(
            math.log(math.comb(total, count))
            + count * math.log(rate)
            + (total - count) * math.log1p(-rate)
            + log_mixture(count, total, rate=rate, prior=prior)
        )
        for count in range(total + 1)
    )
    assert expected == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("mean", [0.25, 0.5, 0.6])
def test_betting_on_a_mean_is_a_fair_game(mean: float) -> None:
    """Over all courses of ten differences of ±1, both gamblers' capital at the true mean is 1 on average."""
    index = round(mean * 800)
    expected = np.zeros(2)
    for course in product((0.0, 1.0), repeat=10):
        game = MeanDifference(alpha=ALPHA)
        for value in course:
            game.add(value, 1 - value)
        chance = math.prod(mean if value else 1 - mean for value in course)
        expected += chance * np.exp(game.log_capital[:, index])
    assert expected == pytest.approx(np.ones(2), rel=1e-9)


def ever_outside(counts: np.ndarray, inside: np.ndarray) -> float:
    """The share of courses (rows of counts so far) that leave the interval (lowest and highest count at each time)."""
    return float(((counts < inside[:, 0]) | (counts > inside[:, 1])).any(axis=1).mean())


def test_an_error_rate_is_inside_its_interval_at_every_look_at_once() -> None:
    """Of 2000 courses of 1500 requests looked at after each, at most 5 % ever leave it; a fixed-size interval of the
    same level, looked at as often, is left by more than a quarter."""
    rng, rate, requests = np.random.default_rng(1), 0.02, 1500
    counts = (rng.random((2000, requests)) < rate).cumsum(axis=1)
    times = np.arange(1, requests + 1)
    inside = np.array([accepted(total, rate) for total in times])
    assert ever_outside(counts, inside) <= ALPHA
    wald = 1.96 * np.sqrt(rate * (1 - rate) * times)
    naive = np.stack([rate * times - wald, rate * times + wald], axis=1)
    assert ever_outside(counts[:, 100:], naive[100:]) > 0.25


def accepted(total: int, rate: float) -> tuple[int, int]:
    """The counts whose interval holds `rate`."""
    counts = [count for count in range(min(total, 80) + 1) if holds(count, int(total), rate)]
    return min(counts), max(counts)


def holds(count: int, total: int, rate: float) -> bool:
    """As `rate_interval` finds it, without the bisection."""
    return log_mixture(count, total, rate=rate, prior=RATE_PRIOR) < math.log(1 / ALPHA)


@pytest.mark.parametrize(("count", "total"), [(0, 100), (3, 3), (2, 150), (40, 1000), (0, 0)])
def test_an_interval_ends_where_the_rate_becomes_a_surprise(count: int, total: int) -> None:
    """Just inside is none, just outside is one."""
    low, high = rate_interval(count, total, alpha=ALPHA)
    step = 1e-6
    assert (low == 0) or (not holds(count, total, low - step) and holds(count, total, low + step))
    assert (high == 1) or (holds(count, total, high - step) and not holds(count, total, high + step))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_a_quantile_is_inside_its_interval_at_every_look_at_once(level: float) -> None:
    """Values below the true quantile are Binomial; 2000 courses of 1000 answers, looked at after each."""
    rng, answers = np.random.default_rng(2), 1000
    below = (rng.random((2000, answers)) < level).cumsum(axis=1)
    ranks = np.array([quantile_ranks(total, level=level, alpha=ALPHA) for total in range(1, answers + 1)])
    # The quantile lies above the value of rank `low` if so many are below it, and below that of `high` if fewer are.
    assert ever_outside(below, np.stack([ranks[:, 0], ranks[:, 1] - 1], axis=1)) <= ALPHA


def test_the_interval_of_a_quantile_is_made_of_values_seen() -> None:
    """And has no end while there are too few."""
    sample = Sample()
    for value in range(1, 101):
        sample.add(101 - value)
    low, high = sample.interval(0.5, alpha=ALPHA)
    assert low < sample.quantile(0.5) == 50 < high
    assert {low, high} <= set(sample.values)
    few = Sample([1.0, 2.0, 3.0])
    assert few.interval(0.5, alpha=ALPHA) == (-math.inf, math.inf)


def test_ties_do_not_break_a_quantile() -> None:
    """Times are often equal where clocks are coarse."""
    assert Sample([7.0] * 200).interval(0.5, alpha=ALPHA) == (7.0, 7.0)


def test_the_prior_of_quantiles_is_centred_at_their_level() -> None:
    """As in the paper: the mixture expects what is true."""
    for level in (0.5, 0.9, 0.99):
        below, above = QUANTILE_SPREAD / (1 - level), QUANTILE_SPREAD / level
        assert below / (below + above) == pytest.approx(level)


def test_a_mean_difference_is_inside_its_interval_at_every_look() -> None:
    """200 courses of 400 pairs that mostly agree, looked at after every tenth."""
    rng, outside, drop = np.random.default_rng(3), 0, -0.03
    for _ in range(200):
        game, left = MeanDifference(alpha=ALPHA), False
        pairs = rng.choice([-1, 0, 1], size=400, p=[0.08, 0.87, 0.05])
        for number, difference in enumerate(pairs):
            game.add(max(difference, 0), max(-difference, 0))
            if number % 10 == 9:
                low, high = game.interval()
                left |= not low <= drop <= high
        outside += left
    assert outside / 200 <= ALPHA


def test_a_mean_difference_is_learnt() -> None:
    """The interval closes around the truth."""
    game = MeanDifference(alpha=ALPHA)
    for number in range(2000):
        game.add(float(number % 10 != 0), 1.0)
    low, high = game.interval()
    assert -0.15 < low < -0.1 < high < -0.05
