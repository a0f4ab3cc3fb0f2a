"""Confidence intervals by the percentile bootstrap (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13).

Rows are drawn again with replacement, many times, from a fixed seed; the interval's ends are quantiles of the
statistic over those draws. Where two models answered the same rows, whole rows are drawn, so that what they have in
common cancels out (a paired bootstrap; for language tasks see Koehn 2004, Statistical Significance Tests for Machine
Translation Evaluation).

Its known limit: where every row scores the same, every draw does too, and the interval has no width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts.specs import Estimate

Scores = NDArray[np.float64]
"""One score a row."""

_MAX_DRAWN = 4_000_000
"""Row numbers held in memory at once."""
_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How to draw."""

    samples: int
    confidence: float
    """Of the two-sided interval, e.g. 0.95."""
    seed: int

    def mean(self, scores: Scores) -> Estimate:
        """The mean over the rows."""
        _check(scores)
        return self._estimate(
            scores.mean(), np.concatenate([scores[drawn].mean(axis=1) for drawn in self._draws(scores)])
        )

    def paired_difference(self, challenger: Scores, champion: Scores) -> Estimate:
        """mean(challenger) − mean(champion), row i of both being the same row."""
        _check(challenger, champion)
        return self.mean(challenger - champion)

    def ratio(self, quantized: Scores, baseline: Scores) -> Estimate | None:
        """mean(quantized) ÷ mean(baseline), row i of both being the same row; None if the baseline scores 0.

        A draw in which the baseline scores 0 counts as ratio 0: the cautious side for a lower bound.
        """
        _check(quantized, baseline)
        if not baseline.any():
            return None
        draws = []
        for drawn in self._draws(baseline):
            below = baseline[drawn].mean(axis=1)
            draws.append(np.divide(quantized[drawn].mean(axis=1), below, out=np.zeros_like(below), where=below > 0))
        return self._estimate(quantized.mean() / baseline.mean(), np.concatenate(draws))

    def _draws(self, scores: Scores) -> Iterator[NDArray[np.int64]]:
        """Row numbers, shape (some of the samples, rows); the same for the same number of rows."""
        generator = np.random.default_rng(self.seed)
        block = max(1, _MAX_DRAWN // len(scores))
        for start in range(0, self.samples, block):
            size = min(block, self.samples - start)
            yield generator.integers(0, len(scores), size=(size, len(scores)))

    def _estimate(self, value: float, draws: Scores) -> Estimate:
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Estimate(
            value=round(float(value), _DECIMALS), low=round(float(low), _DECIMALS), high=round(float(high), _DECIMALS)
        )


def _check(*scores: Scores) -> None:
    if len({len(values) for values in scores}) != 1 or not len(scores[0]):
        raise ValueError(f"need one score a row, as many on each side; got {[len(values) for values in scores]}")
