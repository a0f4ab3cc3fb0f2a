"""Bootstrap confidence intervals against known values."""

import numpy as np
import pytest

from pipeline.evaluation.statistics import Bootstrap

BOOTSTRAP = Bootstrap(samples=2000, confidence=0.95, seed=0)


def test_the_interval_of_a_proportion_is_that_of_the_binomial():
    """600 rows, 88 % right: the normal approximation gives 0.88 ± 1.96 √(0.88 × 0.12 ÷ 600) = 0.854 to 0.906."""
    scores = np.array([1.0] * 528 + [0.0] * 72)
    estimate = BOOTSTRAP.mean(scores)
    assert estimate.value == pytest.approx(0.88)
    assert estimate.low == pytest.approx(0.854, abs=0.003)
    assert estimate.high == pytest.approx(0.906, abs=0.003)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """300 experiments of 200 rows with a true mean of 0.7: 95 % ± 4 % of the intervals hold it."""
    generator = np.random.default_rng(1)
    bootstrap = Bootstrap(samples=500, confidence=0.95, seed=0)
    estimates = [bootstrap.mean((generator.random(200) < 0.7).astype(float)) for _ in range(300)]
    coverage = np.mean([estimate.low <= 0.7 <= estimate.high for estimate in estimates])
    assert 0.91 <= coverage <= 0.99


def test_the_paired_interval_covers_a_true_difference_as_often_as_it_says():
    """Two models whose answers hang together; the true difference of their means is 0.05."""
    generator = np.random.default_rng(2)
    bootstrap = Bootstrap(samples=500, confidence=0.9, seed=0)
    covered = []
    for _ in range(300):
        luck = generator.random(250)
        estimate = bootstrap.paired_difference((luck < 0.75).astype(float), (luck < 0.70).astype(float))
        covered.append(estimate.low <= 0.05 <= estimate.high)
    assert 0.85 <= np.mean(covered) <= 0.96


def test_pairing_makes_the_interval_narrower_than_two_separate_ones():
    """What two models have in common cancels out."""
    luck = np.random.default_rng(3).random(400)
    ours, theirs = (luck < 0.8).astype(float), (luck < 0.78).astype(float)
    paired = BOOTSTRAP.paired_difference(ours, theirs)
    separate = BOOTSTRAP.mean(ours)
    assert paired.high - paired.low < (separate.high - separate.low) / 2


def test_the_same_answers_differ_by_nothing_and_keep_everything():
    """A model against itself: difference 0, ratio 1, both without width."""
    scores = (np.random.default_rng(4).random(100) < 0.6).astype(float)
    difference, ratio = BOOTSTRAP.paired_difference(scores, scores), BOOTSTRAP.ratio(scores, scores)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


def test_the_ratio_is_that_of_the_means():
    """90 of 100 against 99 of 100; the delta method gives a standard error of about 0.03."""
    quantized, baseline = np.array([1.0] * 90 + [0.0] * 10), np.array([1.0] * 99 + [0.0])
    ratio = BOOTSTRAP.ratio(quantized, baseline)
    assert ratio.value == pytest.approx(90 / 99, abs=1e-6)
    assert ratio.low == pytest.approx(90 / 99 - 1.96 * 0.029, abs=0.015)
    assert ratio.high < 1


def test_a_ratio_to_nothing_is_undefined():
    """A baseline without a right answer leaves nothing to recover."""
    assert BOOTSTRAP.ratio(np.zeros(10), np.zeros(10)) is None


def test_a_draw_without_a_right_baseline_answer_counts_as_nothing_recovered():
    """One right answer in 50: more than a third of the draws miss it, so the lower end is 0."""
    scores = np.array([1.0] + [0.0] * 49)
    ratio = BOOTSTRAP.ratio(scores, scores)
    assert (ratio.value, ratio.low) == (1, 0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    """Also where the draws do not fit into one block."""
    scores = np.random.default_rng(5).random(9000)
    first = Bootstrap(samples=1000, confidence=0.95, seed=7).mean(scores)
    assert Bootstrap(samples=1000, confidence=0.95, seed=7).mean(scores) == first
    assert Bootstrap(samples=1000, confidence=0.95, seed=8).mean(scores) != first


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 0.0])])
def test_scores_that_cannot_be_paired_are_refused(ours, theirs):
    """No rows, or not as many on both sides."""
    with pytest.raises(ValueError, match="one score a row"):
        BOOTSTRAP.paired_difference(np.array(ours), np.array(theirs))
