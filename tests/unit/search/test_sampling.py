"""The values of trials: the same for the same seed and scores, never twice, and never against the recipe's rules."""

import math
from typing import Any

import pytest

from pipeline.contracts.base import canonical_json
from pipeline.contracts.search import Search
from pipeline.contracts.study import SuggestSpec, Tried
from pipeline.errors import SpecError
from pipeline.search.sampling import first_values, suggest

RECIPE: dict[str, Any] = {
    "name": "bank",
    "dataset": {"generate": {"kind": "support-intents"}},
    "base_model": {"init": {}},
    "finetune": {"nodes": 1, "learning_rate": 0.002, "epochs": 9},
}
RATE = {"finetune.learning_rate": {"log": [1e-5, 0.9]}}


def search(space: dict[str, Any], **settings: Any) -> Search:
    return Search.model_validate({"space": space, **settings})


def score(values: dict[str, Any]) -> float:
    """Best at a learning rate of 0.03."""
    return 1 - abs(math.log10(values["finetune.learning_rate"] / 0.03)) / 5


def run(wanted: Search, recipe: dict[str, Any] = RECIPE) -> list[Tried]:
    """A whole search, as the DAG would."""
    tried: list[Tried] = []
    for number in range(wanted.num_trials):
        before = tried[: number - number % wanted.parallel]
        values = suggest(SuggestSpec(search=wanted, recipe=recipe, number=number, history=tuple(before))).values
        value = score(values) if "finetune.learning_rate" in values else 0.0
        tried.append(Tried(number=number, values=values, scores=(value,), state="complete"))
    return tried


def test_the_same_seed_gives_the_same_trials() -> None:
    """And another seed gives others, from the second trial on: the first is the recipe's own."""
    first, again, other = (run(search(RATE, trials=8, parallel=2, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first[0] == other[0]
    assert [trial.values for trial in first[1:]] != [trial.values for trial in other[1:]]


def test_a_trial_depends_on_earlier_rounds_alone() -> None:
    """Its neighbours' scores are not known yet; asked for twice it is the same."""
    spec = SuggestSpec(search=search(RATE, parallel=4), recipe=RECIPE, number=3, history=())
    drawn = [suggest(spec.model_copy(update={"number": number})).values for number in (0, 1, 2, 3, 3)]
    assert drawn[3] == drawn[4]
    assert len({canonical_json(values) for values in drawn}) == 4


def test_it_learns_where_the_best_values_are() -> None:
    """The second half of the trials is better than as many at random."""
    half = slice(15, 30)
    learned, at_random = (
        [trial.scores[0] for trial in run(search(RATE, trials=30, parallel=3, sampler=sampler))][half]
        for sampler in ("tpe", "random")
    )
    assert sum(learned) / 15 > sum(at_random) / 15 + 0.1
    assert max(learned) > 0.95


@pytest.mark.parametrize("dimension", [{"log": [1e-5, 0.9]}, {"choice": [0.5, 0.002]}])
def test_the_first_trial_is_the_recipe_itself(dimension: dict[str, Any]) -> None:
    """So that a search never ends worse than it began."""
    spec = SuggestSpec(search=search({"finetune.learning_rate": dimension}), recipe=RECIPE, number=0, history=())
    found = suggest(spec)
    assert (found.values, found.source) == ({"finetune.learning_rate": 0.002}, "the recipe's own values")


def test_own_values_include_the_defaults_and_stay_out_where_the_space_has_them_not() -> None:
    """batch_size is 32 where nobody says otherwise."""
    assert first_values(search({"finetune.batch_size": {"choice": [16, 32]}}), RECIPE) == {"finetune.batch_size": 32}
    found = first_values(search({"finetune.learning_rate": {"uniform": [0.1, 0.2]}}), RECIPE)
    assert 0.1 <= found["finetune.learning_rate"] <= 0.2


def test_a_grid_tries_every_set_once() -> None:
    """The recipe's own first, whatever may be in a list."""
    space = {
        "finetune.lora": {"choice": [{"rank": 4}, {"rank": 8}]},
        "finetune.method": {"choice": ["lora"]},
        "finetune.epochs": {"integer": [8, 10]},
    }
    recipe = {**RECIPE, "finetune": {"nodes": 1, "epochs": 9}}
    tried = run(search(space, sampler="grid", parallel=4), recipe)
    assert len({canonical_json(trial.values) for trial in tried}) == len(tried) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_small_spaces_are_tried_out_without_repetition(sampler: str) -> None:
    """A set that was tried teaches nothing when it is tried again."""
    tried = run(search({"finetune.learning_rate": {"choice": [0.1, 0.2, 0.3, 0.4]}}, sampler=sampler))
    assert sorted(trial.values["finetune.learning_rate"] for trial in tried) == [0.1, 0.2, 0.3, 0.4]


def test_values_that_the_recipe_refuses_together_are_drawn_again() -> None:
    """What only the whole recipe shows, such as heads that do not divide the width."""
    space = {
        "base_model.init.hidden_size": {"choice": [128, 192]},
        "base_model.init.num_heads": {"choice": [2, 4]},
        "base_model.init.num_kv_heads": {"choice": [1, 4]},
    }
    tried = run(search(space, sampler="random", trials=5), RECIPE)
    for trial in tried:
        heads, shared = trial.values["base_model.init.num_heads"], trial.values["base_model.init.num_kv_heads"]
        assert heads % shared == 0


def test_a_space_that_holds_nothing_allowed_is_refused_with_the_recipes_own_words() -> None:
    """Before a trial begins: plan and `slipway search` ask for the first values."""
    space = {"finetune.batch_size": {"choice": [3, 5, 7]}}
    recipe = {**RECIPE, "finetune": {"nodes": 2}}
    with pytest.raises(SpecError, match=r"(?s)holds no further values .* batch_size \(\d\) must be divisible"):
        first_values(search(space), recipe)


def test_failed_trials_are_not_tried_again_and_do_not_stop_the_search() -> None:
    """One that ended before it had values is passed over."""
    history = (
        Tried(number=0, values={}, scores=(), state="failed"),
        Tried(number=1, values={"finetune.epochs": 9}, scores=(), state="failed"),
        Tried(number=2, values={"finetune.epochs": 8}, scores=(0.2, 0.3), state="complete"),
        Tried(number=3, values={"finetune.epochs": 7}, scores=(0.1,), state="pruned"),
    )
    wanted = search({"finetune.epochs": {"integer": [6, 9]}}, parallel=4)
    spec = SuggestSpec(search=wanted, recipe=RECIPE, number=4, history=history)
    assert suggest(spec).values == {"finetune.epochs": 6}
