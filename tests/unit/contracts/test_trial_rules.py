"""Which trials run together, how long they train, and which go on."""

from typing import Any

import pytest

from pipeline.contracts.search import Search
from pipeline.contracts.trials import going_on, pruned_because, round_of, rung_overrides, rung_shares

SPACE = {"finetune.learning_rate": {"log": [1e-4, 1e-2]}}


def search(**settings: Any) -> Search:
    return Search.model_validate({"space": SPACE, **settings})


@pytest.mark.parametrize(
    ("number", "together"), [(0, [0, 1, 2]), (2, [0, 1, 2]), (3, [3, 4, 5]), (6, [6]), (5, [3, 4, 5])]
)
def test_a_round_has_as_many_trials_as_run_side_by_side(number: int, together: list[int]) -> None:
    """The last one what is left."""
    assert list(round_of(search(trials=7, parallel=3), number)) == together


@pytest.mark.parametrize(
    ("pruner", "shares"),
    [
        (None, [1]),
        ({"rungs": 2, "factor": 3}, [1 / 3, 1]),
        ({"rungs": 3, "factor": 2}, [1 / 4, 1 / 2, 1]),
    ],
)
def test_each_rung_trains_for_factor_times_the_epochs(pruner: dict[str, int] | None, shares: list[float]) -> None:
    """And the last in full."""
    assert rung_shares(search(pruner=pruner)) == pytest.approx(shares)


def test_a_rung_shortens_the_trials_own_epochs() -> None:
    """Those of its values before those of the recipe before the default; in full, nothing is changed but the values."""
    values = {"finetune.learning_rate": 1e-3}
    assert rung_overrides({"finetune": {"epochs": 6}}, values, 0.5) == {**values, "finetune.epochs": 3.0}
    assert rung_overrides({}, values, 1 / 3) == {**values, "finetune.epochs": 1.0}
    assert rung_overrides({"finetune": {"epochs": 6}}, values, 1) == values


@pytest.mark.parametrize(
    ("objective", "scores", "best"),
    [
        ("eval.exact_match", {0: 0.5, 1: 0.9}, [1]),
        ("eval.loss", {0: 0.5, 1: 0.9}, [0]),
        ("train_loss", {0: 3.0, 1: 1.0, 2: 2.0, 3: 4.0, 4: 5.0, 5: 0.5}, [5, 1]),
        ("eval.exact_match", {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}, [0, 1]),
        ("eval.token_f1", {7: 0.1}, [7]),
    ],
)
def test_one_in_factor_goes_on_and_at_least_one(objective: str, scores: dict[int, float], best: list[int]) -> None:
    """Of equally good ones those that came first, so that a tie does not let everybody through."""
    assert going_on(search(objective=objective, pruner={"factor": 3}), scores) == best


def test_a_pruned_trial_is_told_its_place_and_what_would_have_sufficed() -> None:
    """One that goes on is told nothing."""
    wanted = search(pruner={"factor": 2})
    scores = {0: 0.8, 1: 0.4, 2: 0.6, 3: 0.2}
    assert pruned_because(wanted, 2, scores) == ""
    assert pruned_because(wanted, 1, scores) == (
        "eval.exact_match 0.4000 is place 3 of 4 at this rung; the first 2 go on, the last of them with 0.6000"
    )
