"""The recovery rule of the compression ladder."""

import pytest

from pipeline.contracts.specs import Estimate, Scores
from pipeline.errors import IntegrityError
from pipeline.evaluation.ladder import judge, recovery, refuse, unquantized
from pipeline.evaluation.predictions import Prediction
from pipeline.evaluation.statistics import Bootstrap

BOOTSTRAP = Bootstrap(samples=500, confidence=0.95, seed=0)


def scores(value: float, rows: int = 600) -> Scores:
    estimate = Estimate(value=value, low=max(0, value - 0.02), high=min(1, value + 0.02))
    return Scores(rows=rows, loss=0.5, exact_match=estimate, token_f1=estimate)


def trial(kept: Estimate | None, baseline: float = 0.9):
    return judge("w4a16", scores(0.88), kept, baseline=scores(baseline), metric="exact_match", min_recovery=0.98)


def predictions(right: int, rows: int = 10, name: str = "question") -> list[Prediction]:
    return [
        Prediction(
            row=number,
            prompt=f"{name} {number}",
            reference="yes",
            prediction="yes" if number < right else "no",
            exact_match=float(number < right),
            token_f1=float(number < right),
            loss=0.1,
            loss_tokens=2,
        )
        for number in range(rows)
    ]


@pytest.mark.parametrize(("low", "passed"), [(0.981, True), (0.98, True), (0.9799, False)])
def test_a_rung_passes_if_the_lower_end_of_its_recovery_reaches_the_minimum(low, passed):
    """Not if only the estimate does; and the reason gives the figures."""
    verdict = trial(Estimate(value=0.99, low=low, high=1.0))
    assert verdict.passed is passed
    assert f"recovery 0.9900 [{low:.4f}, 1.0000]" in verdict.reason
    assert ("does not reach min_recovery 0.98" in verdict.reason) is not passed


def test_no_recovery_can_be_shown_of_a_model_that_scores_nothing():
    """A quantized form of it never passes, and the reason says why."""
    verdict = trial(None, baseline=0.0)
    assert (verdict.passed, verdict.recovery) == (False, None)
    assert "the unquantized model scores 0 on 600 rows" in verdict.reason


def test_the_unquantized_model_always_passes_and_says_what_failed_before():
    """It keeps all of its own score."""
    verdict = unquantized(scores(0.9), [trial(Estimate(value=0.9, low=0.8, high=1))])
    assert (verdict.passed, verdict.recovery.low) == (True, 1)
    assert "none of w4a16 passed" in verdict.reason


def test_a_ladder_without_a_passing_rung_is_refused_with_every_figure():
    """The message says what to do."""
    error = refuse([trial(Estimate(value=0.9, low=0.8, high=0.95))])
    assert error.exit_code == 65
    assert "recovery 0.9000 [0.8000, 0.9500]" in str(error)
    assert "compress.min_recovery" in str(error)


def test_recovery_is_measured_on_the_same_rows():
    """Eight right answers against ten."""
    kept = recovery(predictions(8), predictions(10), metric="exact_match", bootstrap=BOOTSTRAP)
    assert kept.value == pytest.approx(0.8)
    assert kept.low < 0.8 < kept.high


@pytest.mark.parametrize("baseline", [predictions(10, rows=9), predictions(10, name="other question")])
def test_a_baseline_on_other_rows_is_refused(baseline):
    """Fewer rows, or other texts."""
    with pytest.raises(IntegrityError, match="was evaluated on other rows"):
        recovery(predictions(8), baseline, metric="exact_match", bootstrap=BOOTSTRAP)
