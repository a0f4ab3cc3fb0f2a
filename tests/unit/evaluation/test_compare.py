"""The comparison of two models on the same rows, and the file that it reads."""

import pytest

from pipeline.errors import DataError, IntegrityError
from pipeline.evaluation.compare import compare_predictions
from pipeline.evaluation.predictions import Prediction, read_predictions, summarize, write_predictions
from pipeline.evaluation.statistics import Bootstrap


def prediction(number: int, right: bool, *, prompt: str | None = None, fits: bool = True) -> Prediction:
    return Prediction(
        row=number,
        prompt=prompt or f"question {number}",
        reference="yes",
        prediction="yes" if right else "no",
        exact_match=float(right),
        token_f1=float(right),
        loss=0.5 if fits else None,
        loss_tokens=2 if fits else 0,
    )


@pytest.fixture
def write(tmp_path):
    def write(name, predictions):
        write_predictions(tmp_path / name, predictions)
        return tmp_path / name

    return write


def test_a_challenger_is_compared_with_the_champion_row_by_row(write):
    """Ten rows: the challenger has eight right and the champion six of the same."""
    challenger = write("challenger.jsonl", [prediction(number, number < 8) for number in range(10)])
    champion = write("champion.jsonl", [prediction(number, number < 6) for number in range(10)])
    comparison = compare_predictions(challenger, champion, metric="exact_match")
    assert comparison.estimate.value == pytest.approx(0.2)
    assert 0 <= comparison.estimate.low < 0.2 < comparison.estimate.high
    assert (comparison.rows, comparison.complete) == (10, True)
    assert "exact_match is +0.2000" in comparison.sentence()


def test_rows_are_paired_by_their_text_whatever_their_order(write):
    """The champion was scored on the same rows in another order."""
    rows = [prediction(number, number % 3 == 0) for number in range(30)]
    comparison = compare_predictions(write("a.jsonl", rows), write("b.jsonl", rows[::-1]), metric="token_f1")
    assert (comparison.estimate.low, comparison.estimate.high) == (0, 0)


def test_the_comparison_uses_the_rows_that_both_have_and_says_how_many(write):
    """Two new held-out rows leave eight."""
    ours = [prediction(number, True) for number in range(10)]
    theirs = [prediction(number, True) for number in range(2, 13)]
    comparison = compare_predictions(write("a.jsonl", ours), write("b.jsonl", theirs), metric="exact_match")
    assert (comparison.rows, comparison.complete) == (8, False)
    assert "8 rows that both answered (challenger 10, champion 11)" in comparison.sentence()


def test_rows_that_stand_twice_are_paired_one_to_one(write):
    """The n-th of several equal rows meets the n-th."""
    ours = [prediction(0, True, prompt="same"), prediction(1, False, prompt="same")]
    theirs = [prediction(0, False, prompt="same"), prediction(1, False, prompt="same")]
    comparison = compare_predictions(write("a.jsonl", ours), write("b.jsonl", theirs), metric="exact_match")
    assert (comparison.rows, comparison.estimate.value) == (2, 0.5)


def test_too_few_shared_rows_are_refused_with_the_figures(write):
    """Other held-out rows cannot be compared."""
    ours = write("a.jsonl", [prediction(number, True) for number in range(10)])
    theirs = write("b.jsonl", [prediction(number, True) for number in range(6, 16)])
    with pytest.raises(DataError, match="share 4 held-out rows of 10 and 10"):
        compare_predictions(ours, theirs, metric="exact_match")


def test_a_file_that_holds_no_predictions_is_refused_by_line(tmp_path):
    """A missing file, and a line that is cut off."""
    with pytest.raises(IntegrityError, match="no predictions at"):
        read_predictions(tmp_path / "predictions.jsonl")
    (tmp_path / "predictions.jsonl").write_text(prediction(0, True).model_dump_json() + '\n{"row": 1')
    with pytest.raises(IntegrityError, match="line 2 is no prediction"):
        read_predictions(tmp_path / "predictions.jsonl")


def test_what_is_written_is_read_back(write):
    """Texts of any kind, line separators of Unicode included."""
    rows = [prediction(0, True, prompt="line\nbreak \u2028 \U0001f600")]
    assert read_predictions(write("a.jsonl", rows)) == rows


def test_the_summary_counts_rows_that_do_not_fit_as_wrong_and_leaves_them_out_of_the_loss():
    """Two of four right, one of them without a loss."""
    rows = [prediction(0, True), prediction(1, True), prediction(2, False), prediction(3, False, fits=False)]
    scores = summarize(rows, Bootstrap(samples=100, confidence=0.95, seed=0))
    assert (scores.rows, scores.too_long_rows, scores.loss, scores.exact_match.value) == (4, 1, 0.5, 0.5)
