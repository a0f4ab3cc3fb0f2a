"""How one answer is scored."""

import pytest

from pipeline.evaluation.metrics import METRICS, exact_match, normalize, token_f1


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("card_arrival", "card_arrival", 1),
        (" card_arrival\n", "card_arrival", 1),
        ("Card_arrival", "card_arrival", 0),
        ("card arrival", "card_arrival", 0),
        ("e\u0301t\u00e9", "\u00e9t\u00e9", 1),
        ("", "card_arrival", 0),
    ],
)
def test_exact_match_forgives_outer_white_space_and_the_unicode_form_alone(prediction, reference, expected):
    """A program that reads a label forgives neither case nor punctuation."""
    assert exact_match(prediction, reference) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The  Cat, sat!", "cat sat"), ("a", "a"), ("an apple", "apple"), ("theatre", "theatre"), ("  ", "")],
)
def test_normalizing_follows_squad_but_never_empties_an_article(text, expected):
    """Case, punctuation, articles and white space go; a lone article stays."""
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "cat sat down", 0.8),
        ("the cat", "a cat", 1.0),
        ("dog", "cat", 0.0),
        ("cat cat", "cat", 2 / 3),
        ("", "", 1.0),
        ("", "cat", 0.0),
        ("A", "B", 0.0),
    ],
)
def test_token_f1_is_the_harmonic_mean_over_shared_words(prediction, reference, expected):
    """Worked by hand: 2 × shared ÷ (predicted + expected)."""
    assert token_f1(prediction, reference) == pytest.approx(expected)


def test_every_metric_is_a_field_of_the_scores():
    """Whoever adds a metric adds its field."""
    from pipeline.contracts.specs import Scores
    from pipeline.evaluation.predictions import Prediction

    assert METRICS.keys() <= Scores.model_fields.keys()
    assert METRICS.keys() <= Prediction.model_fields.keys()
