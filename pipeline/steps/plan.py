"""plan: checks the recipe and pins every input, so that all later steps read the same bytes.

Reads the recipe (in its spec) and the files, folders and hub models that it names. Writes recipe.json, the recipe
with every default filled in.

Raises:
    SpecError: the recipe breaks a rule, or names something that does not exist.
    TransientError: the store or the hub cannot be reached.
"""

from pathlib import Path

from pipeline.contracts.base import FileRef, canonical_json, sha256_hex
from pipeline.contracts.recipe import Dataset
from pipeline.contracts.specs import GenerateSpec, PlanResult, PlanSpec
from pipeline.inputs import DATA_SUFFIXES, pin_base_model, pin_file, pin_generated, pin_teacher
from pipeline.job import Job
from pipeline.recipe_files import check_recipe


def run(spec: PlanSpec, job: Job) -> PlanResult:
    recipe = check_recipe(spec.recipe)
    train, held_out = _pin_dataset(recipe.dataset, job)
    source, folder = pin_base_model(recipe.base_model, job.settings.cache_path)
    suite_uri = recipe.validation.suite_uri
    suite = _pin(suite_uri, "validation.suite_uri", job, suffixes=(".json",)) if suite_uri else None
    distill = recipe.finetune.distill
    teacher = pin_teacher(distill.teacher, job) if distill else None
    recipe = recipe.model_copy(update={"base_model": source})
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


def _pin_dataset(dataset: Dataset, job: Job) -> tuple[FileRef, FileRef]:
    if dataset.generate is not None:
        return pin_generated(GenerateSpec(settings=dataset.generate), job)
    return (
        _pin(str(dataset.uri), "dataset.uri", job, suffixes=DATA_SUFFIXES),
        _pin(str(dataset.eval_uri), "dataset.eval_uri", job, suffixes=DATA_SUFFIXES),
    )


def _pin(uri: str, field: str, job: Job, *, suffixes: tuple[str, ...]) -> FileRef:
    return pin_file(uri, field, job.settings.cache_path, suffixes=suffixes)
