"""What in a recipe changes a result, and what only says with what, how divided and how patiently a step runs."""

from typing import Any

import pytest

from pipeline.contracts.base import ArtifactRef, ModelRef, progress_key, step_key
from pipeline.contracts.recipe import Resources, StepResources
from pipeline.contracts.specs import STEPS, FinetuneSpec, RegisterSpec
from pipeline.errors import SpecError
from pipeline.recipe_files import apply_overrides, check_recipe

GOOD: dict[str, Any] = {
    "name": "bank",
    "dataset": {"generate": {"kind": "support-intents"}},
    "base_model": {"init": {}},
}


def problems(overrides: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        check_recipe(apply_overrides(GOOD, overrides))
    return str(caught.value)


def test_every_kind_of_step_has_a_memory_limit_and_no_limit_of_cores() -> None:
    """A step that runs wild ends itself and not the machine; its speed is the machine's."""
    resources = check_recipe(GOOD).resources
    for kind in set(Resources.model_fields) - {"cluster"}:
        limits: StepResources = getattr(resources, kind)
        assert limits.memory_gb, kind
        assert limits.cpus is None, kind


def test_engines_have_shared_memory_from_the_start() -> None:
    """Docker's own 64 MB are too little for the processes of a training or an inference engine."""
    resources = check_recipe(GOOD).resources
    assert all(getattr(resources, kind).shm_gb for kind in ("finetune", "evaluate", "compress"))


def test_a_recipe_sets_the_limits_of_one_kind_and_leaves_the_others() -> None:
    """Fractions of a core are allowed; what is not named keeps the section's own value."""
    overrides = {"resources.finetune.cpus": 1.5, "resources.finetune.memory_gb": 32}
    resources = check_recipe(apply_overrides(GOOD, overrides)).resources
    assert (resources.finetune.cpus, resources.finetune.memory_gb) == (1.5, 32)
    assert resources.evaluate == Resources().evaluate


PAIRS = {"dataset.generate.kind": "support-preferences", "dataset.format": "preference", "finetune.method": "dpo"}


def test_pairs_of_answers_are_for_dpo() -> None:
    """A recipe that has both, and nothing else, is sound."""
    assert check_recipe(apply_overrides(GOOD, PAIRS)).dataset.format == "preference"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            {"finetune.method": "dpo"},
            "finetune.method is dpo, which learns from pairs of answers, but dataset.format is",
        ),
        (
            {**PAIRS, "finetune.method": "lora"},
            "dataset.format is preference, but finetune.method is lora, which would",
        ),
        ({"dataset.format": "preference"}, "generate.kind support-intents makes chat rows, but format is preference"),
        ({**PAIRS, "finetune.batching": "packing"}, "batching packing with method dpo does not work"),
    ],
)
def test_a_method_without_its_kind_of_rows_is_refused(overrides: dict[str, Any], told: str) -> None:
    """Both fields are named, and what would fit."""
    assert told in problems(overrides)


def test_null_is_no_limit() -> None:
    """For who has the machine to himself."""
    resources = check_recipe(apply_overrides(GOOD, {"resources.finetune.memory_gb": None})).resources
    assert resources.finetune.memory_gb is None


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"resources.finetune.memory_gb": 0}, "resources.finetune.memory_gb: 0 is not allowed"),
        ({"resources.finetune.cpus": -1}, "resources.finetune.cpus: -1 is not allowed"),
        ({"resources.compress.shm_gb": 0}, "resources.compress.shm_gb: 0 is not allowed"),
        ({"resources.evaluate.memory_gb": "8g"}, "resources.evaluate.memory_gb: '8g' is not allowed"),
        ({"resources.control.cpus": float("inf")}, "resources.control.cpus: inf is not allowed"),
    ],
)
def test_a_limit_that_is_none_is_refused(overrides: dict[str, Any], told: str) -> None:
    """Field, value and rule."""
    assert told in problems(overrides)


def test_a_step_or_limit_that_does_not_exist_is_named() -> None:
    """With the nearest one that does."""
    with pytest.raises(SpecError, match=r"resources has no field 'finetun'\. Did you mean finetune\?"):
        apply_overrides(GOOD, {"resources.finetun.cpus": 1})
    with pytest.raises(SpecError, match=r"resources\.finetune has no field 'memory'\. Did you mean memory_gb\?"):
        apply_overrides(GOOD, {"resources.finetune.memory": 1})


def test_limits_change_no_key() -> None:
    """They say with what a step runs, not what it makes: raising one must not make a registration begin anew."""

    def key(overrides: dict[str, Any]) -> str:
        artifact = ArtifactRef(uri="s3://bucket/store/finetune/key", digest="0" * 64)
        spec = RegisterSpec(
            name="bank",
            recipe=check_recipe(apply_overrides(GOOD, overrides)),
            dataset=artifact,
            finetuned=artifact,
            bundle=ModelRef(artifact=artifact),
            evaluation=artifact,
        )
        return step_key("register", STEPS["register"].version, spec)

    assert key({}) == key({"resources.finetune.memory_gb": 32, "resources.control.cpus": 1})
    assert key({}) != key({"finetune.epochs": 7})


def finetune_keys(**changes: Any) -> tuple[str, str]:
    """Of the artifact, and of the checkpoints."""
    dataset = ArtifactRef(uri="s3://bucket/store/validate/key", digest="0" * 64)
    settings = {"nodes": 4, **changes}
    spec = FinetuneSpec.model_validate({"dataset": dataset, "base_model": {"init": {}}, "settings": settings})
    return step_key("finetune", 1, spec), progress_key("finetune", 1, spec)


def test_how_patient_a_training_is_and_when_it_saves_change_no_key() -> None:
    """A limit that an error message names can be raised, and the training goes on."""
    patient = {"join_timeout_s": 900, "stall_timeout_s": 900.0, "min_nodes": 2}
    assert finetune_keys(**patient, checkpoint_every_steps=7, keep_checkpoints=5) == finetune_keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": 2, "procs_per_node": 2},
        {"parallelism": {"zero": 3}},
        {"parallelism": {"sequence": 2}},
        {"gradient_accumulation": 2, "activation_checkpointing": True},
        {"balance": "measured"},
    ],
    ids=str,
)
def test_a_training_whose_work_is_divided_otherwise_goes_on_from_its_checkpoints(changes: dict[str, Any]) -> None:
    """Though it is another artifact, since sums are rounded otherwise."""
    artifact, checkpoints = finetune_keys(**changes)
    assert artifact != finetune_keys()[0]
    assert checkpoints == finetune_keys()[1]


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 2.0}, {"learning_rate": 0.1}, {"seed": 1}, {"batch_size": 64}, {"parallelism": {"tensor": 2}}],
    ids=str,
)
def test_another_training_has_checkpoints_of_its_own(changes: dict[str, Any]) -> None:
    """As has one whose layers are cut up otherwise."""
    assert finetune_keys(**changes)[1] != finetune_keys()[1]
