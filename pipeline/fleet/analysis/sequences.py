"""Intervals that stay valid however often one looks: confidence sequences.

An interval of the usual kind errs in 5 % of the cases when it is looked at once. Looked at after every request it errs
far more often, and whoever stops at the first alarm stops nearly every good version in the end. These intervals hold
at all times together: with probability 1 − alpha the true value is inside at every look (Ville's inequality for the
martingales below), so that one may stop whenever one likes.

- Rates and quantiles: the beta-binomial mixture. Robbins, Annals of Mathematical Statistics 41 (1970); Howard, Ramdas,
  McAuliffe and Sekhon, Annals of Statistics 49 (2021), proposition 7; for quantiles Howard and Ramdas, Bernoulli 28
  (2022), equation 11. Johari, Koomen, Pekelis and Walsh, Operations Research 70 (2022), call such mixtures mSPRT.
- Means of bounded values: betting. Waudby-Smith and Ramdas, Journal of the Royal Statistical Society B 86 (2024),
  the hedged capital process of section 4.3.

They assume that what is counted on one side is alike and independent of what came before, given the version.
"""

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

RATE_PRIOR = (0.5, 10.0)
"""Of the mixture over error rates: most of its weight on a few per cent, some on everything."""
QUANTILE_SPREAD = 2.0
"""Of the mixture over quantile ranks: small, so that a gross difference shows after some twenty answers."""
BETS_AT_MOST = 0.5
"""Of the capital that could be lost."""
GRID = 801
"""Candidates for a mean of differences from −1 to 1: every quarter of a point."""


def log_mixture(count: float, total: float, *, rate: float, prior: tuple[float, float]) -> float:
    """The logarithm of a martingale that starts at 1 and stays small as long as `rate` is the true one.

    The likelihood of `count` successes of `total`, mixed over Beta(`prior`), against that at `rate`.
    """
    if not 0 < rate < 1:
        impossible = (rate <= 0 and count > 0) or (rate >= 1 and count < total)
        return math.inf if impossible else -math.inf
    first, second = prior
    mixed = _log_beta(first + count, second + total - count) - _log_beta(first, second)
    return mixed - count * math.log(rate) - (total - count) * math.log1p(-rate)


def rate_interval(count: int, total: int, *, alpha: float) -> tuple[float, float]:
    """The rates at which `count` of `total` is no surprise."""
    if total == 0:
        return 0.0, 1.0
    seen, limit = count / total, -math.log(alpha)

    def surprises(rate: float) -> bool:
        return log_mixture(count, total, rate=rate, prior=RATE_PRIOR) >= limit

    return (
        0.0 if count == 0 else _edge(0.0, seen, surprises),
        1.0 if count == total else _edge(1.0, seen, surprises),
    )


def _edge(outside: float, inside: float, surprises: Callable[[float], bool]) -> float:
    """Where the surprise ends, by bisection; on its outer side."""
    for _ in range(40):
        middle = (outside + inside) / 2
        if surprises(middle):
            outside = middle
        else:
            inside = middle
    return outside


def quantile_ranks(total: int, *, level: float, alpha: float) -> tuple[int, int]:
    """Between which of `total` values in ascending order (from 1) the quantile `level` lies; 0 and `total` + 1 stand
    for −∞ and ∞: too few values to say."""
    limit = -math.log(alpha)
    # Centred at `level`, as Howard and others have it: r/(1 − p) and r/p.
    prior = (QUANTILE_SPREAD / (1 - level), QUANTILE_SPREAD / level)

    def surprises(count: int) -> bool:
        return log_mixture(count, total, rate=level, prior=prior) >= limit

    middle = round(level * total)
    if surprises(middle):
        return 0, total + 1
    # The least and the greatest number of values below the quantile that is no surprise.
    least = _first(0, middle, lambda count: not surprises(count))
    greatest = total - _first(0, total - middle, lambda missing: not surprises(total - missing))
    return least, greatest + 1


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least of low … high for which `holds`, which stays true from there and is true at `high`."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


@dataclass
class Sample:
    """Values in ascending order, and where their quantiles lie."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        insort(self.values, value)

    def __len__(self) -> int:
        return len(self.values)

    def quantile(self, level: float) -> float:
        """The smallest value that so many are not above."""
        return self.values[max(0, math.ceil(level * len(self.values)) - 1)]

    def interval(self, level: float, *, alpha: float) -> tuple[float, float]:
        """−∞ or ∞ where there are too few values to say."""
        low, high = quantile_ranks(len(self.values), level=level, alpha=alpha)
        return (
            self.values[low - 1] if low >= 1 else -math.inf,
            self.values[high - 1] if high <= len(self.values) else math.inf,
        )


class MeanDifference:
    """The mean of differences between −1 and 1, learnt one at a time.

    For every candidate mean two gamblers bet that it is higher, and lower, with stakes chosen before each difference is
    seen. A candidate at which either of them has multiplied its money by 2/alpha is out.
    """

    def __init__(self, *, alpha: float) -> None:
        self.alpha = alpha
        self.candidates = np.linspace(0.0, 1.0, GRID)
        self.log_capital = np.zeros((2, GRID))
        self.total = 0
        self.canary_sum = self.stable_sum = 0.0
        self._sum, self._squares = 0.5, 0.25

    def add(self, canary: float, stable: float) -> None:
        """Takes in one pair of scores, each from 0 to 1."""
        self.canary_sum += canary
        self.stable_sum += stable
        value = (canary - stable + 1) / 2
        turn = self.total + 1
        variance = self._squares / turn
        stake = math.sqrt(2 * math.log(2 / self.alpha) / (variance * turn * math.log(1 + turn)))
        with np.errstate(divide="ignore"):
            up = np.minimum(stake, BETS_AT_MOST / self.candidates)
            down = np.minimum(stake, BETS_AT_MOST / (1 - self.candidates))
        # At the ends of the grid an infinite stake meets a zero chance: nothing is bet there.
        up[0], down[-1] = stake, stake
        self.log_capital[0] += np.log1p(up * (value - self.candidates))
        self.log_capital[1] += np.log1p(-down * (value - self.candidates))
        self.total = turn
        self._sum += value
        self._squares += (value - self._sum / (turn + 1)) ** 2

    def interval(self) -> tuple[float, float]:
        """Of the mean difference; a step of the grid wider than it must be."""
        kept = np.flatnonzero(self.log_capital.max(axis=0) < math.log(2 / self.alpha))
        if kept.size == 0:
            return -1.0, 1.0
        low, high = max(0, int(kept[0]) - 1), min(GRID - 1, int(kept[-1]) + 1)
        return float(2 * self.candidates[low] - 1), float(2 * self.candidates[high] - 1)


def _log_beta(first: float, second: float) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)
