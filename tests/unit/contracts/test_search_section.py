"""The recipe's section `search`: what may vary and between which values, refused before any work starts."""

from typing import Any

import pytest

from pipeline.contracts.base import ArtifactRef, ModelRef, step_key
from pipeline.contracts.search import Dimension, Search
from pipeline.contracts.specs import RegisterSpec
from pipeline.errors import SpecError
from pipeline.recipe_files import check_recipe

GOOD: dict[str, Any] = {
    "name": "bank",
    "dataset": {"generate": {"kind": "support-intents"}},
    "base_model": {"init": {}},
}
RATE = {"finetune.learning_rate": {"log": [1e-4, 1e-2]}}


def searched(space: dict[str, Any], **settings: Any) -> Search:
    search = check_recipe({**GOOD, "search": {"space": space, **settings}}).search
    assert search is not None
    return search


@pytest.mark.parametrize(
    ("space", "settings", "told"),
    [
        ({}, {}, "search.space: {} is not allowed"),
        (
            {"finetune.learning_rat": {"log": [1e-4, 1e-2]}},
            {},
            "finetune.learning_rat: there is no such field; allowed",
        ),
        ({"finetune.lora.rnk": {"integer": [1, 8]}}, {}, "allowed here: rank, alpha"),
        ({"finetune.epochs.more": {"integer": [1, 8]}}, {}, "finetune.epochs.more: there is no such field"),
        ({"gates.min_score": {"uniform": [0, 1]}}, {}, "gates.min_score, which does not change the model"),
        ({"evaluate.seed": {"integer": [0, 9]}}, {}, "evaluate.seed, which does not change the model"),
        ({"name": {"choice": ["a", "b"]}}, {}, "expected fields of finetune or base_model, or dataset.uri"),
        (
            {"finetune.learning_rate": {"log": [1e-4, 2]}},
            {},
            "learning_rate, which cannot be 2.0: input should be less",
        ),
        ({"finetune.batch_size": {"uniform": [8, 64]}}, {}, "batch_size, which cannot be 29.3"),
        ({"finetune.method": {"choice": ["full", "lore"]}}, {}, "finetune.method, which cannot be 'lore'"),
        ({"finetune.epochs": {"uniform": [3, 3]}}, {}, "uniform [3, 3] is empty"),
        ({"finetune.epochs": {"integer": [4, 2]}}, {}, "the first number must be below the second"),
        ({"finetune.epochs": {"log": [0, 2]}}, {}, "log [0, 2] must begin above 0"),
        ({"finetune.epochs": {"choice": []}}, {}, "choice is empty"),
        ({"finetune.epochs": {"choice": [2, 4, 2]}}, {}, "lists a value twice"),
        ({"finetune.epochs": {"choice": [2], "log": [1, 2]}}, {}, "not log and choice"),
        ({"finetune.epochs": {}}, {}, "not none of them"),
        ({"finetune.epochs": {"log": [1, 2], "step": 0.5}}, {}, "step has no meaning with log"),
        ({"finetune.epochs": {"choice": [1, 2], "step": 1}}, {}, "step has no meaning with choice"),
        ({"finetune.epochs": {"integer": [1, 9], "step": 0.5}}, {}, "must be a whole number"),
        ({"finetune.epochs": {"uniform": [1, 2], "step": 3}}, {}, "leaves uniform [1, 2] one value"),
        ({"finetune.epochs": {"logs": [1, 2]}}, {}, "search.space.finetune.epochs.logs: unknown field"),
        (RATE, {"sampler": "grid"}, "has infinitely many values: give it a `step`"),
        (RATE, {"objective": "accuracy"}, "search.objective: 'accuracy' is not allowed"),
        (RATE, {"trials": 1}, "search.trials: 1 is not allowed"),
        (RATE, {"pruner": {"rungs": 1}}, "search.pruner.rungs: 1 is not allowed"),
        (
            {"finetune.lora": {"choice": [None]}, "finetune.lora.rank": {"integer": [4, 8]}},
            {},
            "finetune.lora and finetune.lora.rank, which is a part of it",
        ),
    ],
)
def test_a_search_that_cannot_work_is_refused_by_field_and_value(
    space: dict[str, Any], settings: dict[str, Any], told: str
) -> None:
    """With the recipe, before anything runs."""
    with pytest.raises(SpecError) as caught:
        searched(space, **settings)
    assert told in str(caught.value)


def test_all_that_is_wrong_with_a_space_is_told_at_once() -> None:
    """Nobody likes to correct one field a run."""
    with pytest.raises(SpecError, match=r"finetune\.one.*finetune\.two"):
        searched({"finetune.one": {"choice": [1]}, "finetune.two": {"choice": [1]}})


def test_any_field_that_makes_the_model_may_vary() -> None:
    """Whole sections, other base models and other training rows included; `1e-4` is a number in YAML's eyes, too."""
    space = {
        "finetune.learning_rate": {"log": ["1e-4", "1e-2"]},
        "finetune.parallelism.zero": {"choice": [1, 2]},
        "finetune.lora": {"choice": [None, {"rank": 8}]},
        "base_model.uri": {"choice": ["org/small", "org/large"]},
        "dataset.uri": {"choice": ["a.jsonl", "b.jsonl"]},
    }
    assert searched(space).space["finetune.learning_rate"].ends == (1e-4, 1e-2)


@pytest.mark.parametrize(
    ("dimension", "listed"),
    [
        ({"integer": [1, 4]}, (1, 2, 3, 4)),
        ({"integer": [8, 63], "step": 16}, (8, 24, 40, 56)),
        ({"uniform": [0, 0.3], "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"choice": ["a", None]}, ("a", None)),
        ({"uniform": [0, 1]}, None),
        ({"log": [1, 10]}, None),
    ],
)
def test_a_dimension_lists_its_values_where_there_is_an_end_to_them(
    dimension: dict[str, Any], listed: tuple[Any, ...] | None
) -> None:
    """Both ends included, and steps without the noise of floating point."""
    assert Dimension.model_validate(dimension).listed == listed


def test_a_dimension_knows_its_own_values() -> None:
    """By list or by range."""
    steps, log = Dimension(integer=(8, 64), step=8), Dimension(log=(1e-4, 1e-2))
    assert (steps.contains(16), steps.contains(17)) == (True, False)
    assert (log.contains(1e-3), log.contains(1), log.contains(None)) == (True, False, False)


def test_there_are_no_more_trials_than_sets_of_values() -> None:
    """A small grid ends when it was walked through."""
    space = {"finetune.epochs": {"choice": [2, 4]}, "base_model.init.num_layers": {"integer": [1, 3]}}
    assert searched(space, sampler="grid").num_trials == 6
    assert searched(space, trials=5).num_trials == 5
    assert searched({**space, **RATE}, trials=50).num_trials == 50


def test_how_values_were_found_changes_no_key() -> None:
    """A recipe with a search section is released from the same artifacts as one without."""
    ref = ArtifactRef(uri="file:///store/x", digest="0" * 64)
    keys = {
        step_key(
            "register",
            1,
            RegisterSpec(
                name="bank",
                recipe=check_recipe({**GOOD, **extra}),
                dataset=ref,
                finetuned=ref,
                bundle=ModelRef(artifact=ref),
                evaluation=ref,
            ),
        )
        for extra in ({}, {"search": {"space": RATE}})
    }
    assert len(keys) == 1
