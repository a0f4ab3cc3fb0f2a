"""plan: checks the recipe and pins every input, so that all later steps read the same bytes.

It also says what fine-tuning will take, chooses the parallelism where the recipe says `auto`, and refuses a training
that does not fit before anything of it is queued.

Reads the recipe (in its spec) and the files, folders and hub models that it names. Writes recipe.json, the recipe
with every default filled in.

Raises:
    SpecError: the recipe breaks a rule, names something that does not exist, or does not fit the memory it may take.
    TransientError: the store or the hub cannot be reached.
"""

from pathlib import Path
from typing import Any

from pipeline.contracts.base import FileRef, canonical_json, sha256_hex
from pipeline.contracts.recipe import Dataset, Recipe
from pipeline.contracts.search import Search
from pipeline.contracts.specs import GenerateSpec, PinnedModel, PlanResult, PlanSpec
from pipeline.errors import TransientError
from pipeline.inputs import DATA_SUFFIXES, pin_base_model, pin_file, pin_generated, pin_teacher
from pipeline.job import Job
from pipeline.model_configs import base_shape, pinned_shape
from pipeline.planning.plans import plan_training
from pipeline.planning.report import as_json, summary
from pipeline.planning.shapes import UnknownShape
from pipeline.recipe_files import check_recipe


def run(spec: PlanSpec, job: Job) -> PlanResult:
    recipe = check_recipe(spec.recipe)
    if recipe.search is not None:
        _check_search(recipe.search, spec.recipe)
    train, held_out = _pin_dataset(recipe.dataset, job)
    source, folder = pin_base_model(recipe.base_model, job.settings.cache_path)
    suite_uri = recipe.validation.suite_uri
    suite = _pin(suite_uri, "validation.suite_uri", job, suffixes=(".json",)) if suite_uri else None
    distill = recipe.finetune.distill
    teacher = pin_teacher(distill.teacher, job) if distill else None
    recipe = _spread(recipe.model_copy(update={"base_model": source}), teacher, job)
    dumped = recipe.model_dump(mode="json")
    Path(job.staging_path / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    job.say(f"planned {recipe.name}: {train.size_bytes:,} + {held_out.size_bytes:,} bytes of rows")
    return PlanResult(
        recipe=recipe,
        recipe_digest=sha256_hex(canonical_json(dumped)),
        train=train,
        eval=held_out,
        base_model=folder,
        suite=suite,
        teacher=teacher,
    )


def _spread(recipe: Recipe, teacher: PinnedModel | None, job: Job) -> Recipe:
    """The recipe with a concrete parallelism that fits.

    Where a model's sizes cannot be had, nothing is forecast and the log says so; `auto` then is refused.
    """
    try:
        shape = base_shape(recipe.base_model)
        teacher_shape = pinned_shape(teacher) if teacher else None
    except (UnknownShape, TransientError) as error:
        if recipe.finetune.parallelism.auto:
            raise
        job.say(f"no forecast of fine-tuning: {error}")
        return recipe
    plan = plan_training(recipe, shape, teacher=teacher_shape)
    settings = plan.settings
    job.say(summary(plan))
    job.figures["forecast"] = as_json(plan)["expected"]
    return recipe.model_copy(update={"finetune": settings})


def _check_search(search: Search, fields: dict[str, Any]) -> None:
    """Refuses a search whose space holds nothing that the recipe allows."""
    from pipeline.search.sampling import first_values  # Optuna takes a second, and most recipes search nothing

    first_values(search, fields)


def _pin_dataset(dataset: Dataset, job: Job) -> tuple[FileRef, FileRef]:
    if dataset.generate is not None:
        return pin_generated(GenerateSpec(settings=dataset.generate), job)
    return (
        _pin(str(dataset.uri), "dataset.uri", job, suffixes=DATA_SUFFIXES),
        _pin(str(dataset.eval_uri), "dataset.eval_uri", job, suffixes=DATA_SUFFIXES),
    )


def _pin(uri: str, field: str, job: Job, *, suffixes: tuple[str, ...]) -> FileRef:
    return pin_file(uri, field, job.settings.cache_path, suffixes=suffixes)
