"""Compares two models by what they answered to the same rows. Light: promotion calls it when it decides."""

from collections import Counter
from pathlib import Path

from pipeline.contracts.base import Contract
from pipeline.contracts.specs import Estimate
from pipeline.errors import DataError
from pipeline.evaluation.predictions import Prediction, metric_values, read_predictions
from pipeline.evaluation.statistics import Bootstrap

MIN_SHARED_FRACTION = 0.5
"""Of the challenger's rows; a comparison on fewer would say little about the rest."""


class Comparison(Contract):
    """Challenger − champion."""

    metric: str
    estimate: Estimate
    """The paired difference of the means over the shared rows."""
    rows: int
    """How many rows both answered."""
    challenger_rows: int
    champion_rows: int

    @property
    def complete(self) -> bool:
        """Whether both answered exactly the same rows."""
        return self.rows == self.challenger_rows == self.champion_rows

    def sentence(self) -> str:
        """The figures for a report."""
        shared = (
            f"the same {self.rows} rows"
            if self.complete
            else f"the {self.rows} rows that both answered (challenger {self.challenger_rows}, champion"
            f" {self.champion_rows})"
        )
        low, high = f"{self.estimate.low:+.4f}", f"{self.estimate.high:+.4f}"
        return f"challenger − champion in {self.metric} is {self.estimate.value:+.4f} [{low}, {high}] on {shared}"


def compare_predictions(
    challenger_path: Path,
    champion_path: Path,
    *,
    metric: str,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """The paired difference on the rows that both files have, found by prompt and reference.

    Args:
        challenger_path, champion_path: a predictions.jsonl each.
        metric: a name of `metrics.METRICS`.

    Raises:
        DataError: they share less than half of the challenger's rows.
        IntegrityError: a file is missing or is none.
    """
    challenger, champion = read_predictions(challenger_path), read_predictions(champion_path)
    pairs = match_rows(challenger, champion)
    if not pairs or len(pairs) < MIN_SHARED_FRACTION * len(challenger):
        raise DataError(
            f"challenger and champion share {len(pairs)} held-out rows of {len(challenger)} and {len(champion)},"
            f" expected at least {MIN_SHARED_FRACTION:.0%} of the challenger's; evaluate the champion's model on the"
            " new held-out rows, or promote by hand"
        )
    bootstrap = Bootstrap(samples=samples, confidence=confidence, seed=seed)
    estimate = bootstrap.paired_difference(
        metric_values([ours for ours, _ in pairs], metric), metric_values([theirs for _, theirs in pairs], metric)
    )
    return Comparison(
        metric=metric,
        estimate=estimate,
        rows=len(pairs),
        challenger_rows=len(challenger),
        champion_rows=len(champion),
    )


def match_rows(ours: list[Prediction], theirs: list[Prediction]) -> list[tuple[Prediction, Prediction]]:
    """Pairs of the same row, in the order of `ours`; the n-th of several equal rows meets the n-th."""
    others = dict(_numbered(theirs))
    return [(prediction, others[name]) for name, prediction in _numbered(ours) if name in others]


def _numbered(predictions: list[Prediction]) -> list[tuple[tuple[str, str, int], Prediction]]:
    seen: Counter[tuple[str, str]] = Counter()
    named = []
    for prediction in predictions:
        row = (prediction.prompt, prediction.reference)
        named.append(((*row, seen[row]), prediction))
        seen[row] += 1
    return named
